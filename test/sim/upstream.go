package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/member/membertest"
	"github.com/ringmod/ringmod/node/upstream"
)

// mood is how upstream treats those who ask.
type mood uint8

const (
	moodOK    mood = iota
	moodSlow       // answers late and trickles
	moodHang       // takes the request and says nothing
	moodStall      // says nothing more from the middle of the body on
	moodFail       // 500
	moodCut        // the body ends in the middle
	moodWrong      // other bytes
	moodLost       // 404 for everything
)

var moodNames = [...]string{"ok", "slow", "hang", "stall", "500", "cut", "wrong", "404"} //nolint:gochecknoglobals // never written

func (m mood) String() string { return moodNames[m] }

// What node/upstream does to an upstream that keeps silent.
const (
	upstreamHeader = 20 * time.Second
	upstreamStall  = 15 * time.Second
	upstreamDial   = 5 * time.Second
)

// fetch is one request to upstream.
type fetch struct {
	by     string // the member
	boot   int
	region string // of the caller on whose behalf; "" if that is not known
	target target.Target
	start  time.Time
	end    time.Time // zero while it runs
	err    error     // how it failed
	bad    bool      // it got bytes that nobody must take
	holders
}

// holders tells where an object is at a time.
type holders struct {
	since map[string]time.Time // by machine
	lost  int                  // how often one was there and is not any more
}

// failed reports whether f brought nothing, by the time at.
func (f *fetch) failed(at time.Time) bool {
	return (f.err != nil || f.bad) && !f.end.IsZero() && !f.end.After(at)
}

func (f *fetch) String() string {
	return fmt.Sprintf("%s fetches %s", f.by, f.target)
}

// outside is the upstream of all members.
type outside struct {
	net  *membertest.Network
	host netip.Addr
	catalog

	holders func(t target.Target) holders

	mu      sync.Mutex // guards what follows
	moods   map[int]mood
	fetches []*fetch
}

func newOutside(net *membertest.Network, host netip.Addr) *outside {
	return &outside{net: net, host: host, moods: make(map[int]mood)}
}

// setMood changes how module mod is treated, all of them if it is -1.
func (o *outside) setMood(mod int, m mood) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if mod < 0 {
		clear(o.moods)
		for i := range zipSizes {
			o.moods[i] = m
		}
		return
	}
	o.moods[mod] = m
}

func (o *outside) moodOf(mod int) mood {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.moods[mod]
}

func (o *outside) begin(f *fetch) {
	f.holders = o.holders(f.target)
	o.mu.Lock()
	defer o.mu.Unlock()
	f.start = time.Now()
	o.fetches = append(o.fetches, f)
}

func (o *outside) finish(f *fetch, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f.end.IsZero() {
		f.end, f.err = time.Now(), err
	}
}

// history returns copies of all fetches so far.
func (o *outside) history() []fetch {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]fetch, len(o.fetches))
	for i, f := range o.fetches {
		all[i] = *f
	}
	return all
}

// source is upstream as one boot of a member sees it: a node.Upstream.
type source struct {
	out  *outside
	id   string
	boot int
	host netip.Addr
	dead <-chan struct{} // closed when the boot ends
}

// Offline implements node.Upstream.
func (s *source) Offline() bool { return false }

// Fetch implements node.Upstream, with the errors that node/upstream has.
func (s *source) Fetch(ctx context.Context, t target.Target, v upstream.Validators) (*upstream.Response, error) {
	mod, _ := place(t)
	m := s.out.moodOf(mod)
	f := &fetch{by: s.id, boot: s.boot, region: regionOf(ctx), target: t, bad: m == moodWrong}
	s.out.begin(f)
	resp, err := s.fetch(ctx, t, v, m)
	if err != nil {
		s.out.finish(f, err)
		return nil, err
	}
	if resp.NotModified {
		s.out.finish(f, nil)
	}
	body := resp.Body
	resp.Body = &endReader{Reader: body, end: func(err error) { s.out.finish(f, err) }}
	return resp, nil
}

func (s *source) fetch(ctx context.Context, t target.Target, v upstream.Validators, m mood) (*upstream.Response, error) {
	if err := s.pause(ctx, 20*time.Millisecond); err != nil {
		return nil, err
	}
	if s.cut() {
		return nil, s.late(ctx, upstreamDial, cache.Broken, "cannot be reached")
	}
	switch m {
	case moodSlow:
		if err := s.pause(ctx, 4*time.Second); err != nil {
			return nil, err
		}
	case moodHang:
		return nil, s.late(ctx, upstreamHeader, cache.Slow, "does not answer")
	case moodFail:
		return nil, trouble(cache.Broken, "answered 500")
	}
	data := s.out.lookup(t)
	if data == nil || m == moodLost {
		return nil, trouble(cache.NotFound, "404")
	}
	return s.answer(ctx, t, v, m, data), nil
}

func (s *source) answer(ctx context.Context, t target.Target, v upstream.Validators, m mood, data []byte) *upstream.Response {
	etag := fmt.Sprintf("%x", sha256.Sum256(data))
	resp := &upstream.Response{Source: "upstream.test", Size: int64(len(data)), Validators: upstream.Validators{ETag: etag}}
	if v.ETag == etag && m != moodWrong {
		resp.NotModified, resp.Body = true, io.NopCloser(bytes.NewReader(nil))
		return resp
	}
	b := &trickle{source: s, ctx: ctx, left: data, step: 64 << 10, pause: 10 * time.Millisecond}
	switch m {
	case moodSlow:
		b.step, b.pause = max(len(data)/8, 1), time.Second
	case moodStall:
		b.bad, b.left = moodStall, data[:len(data)/2]
	case moodCut:
		b.bad, b.left = moodCut, data[:len(data)/2]
	case moodWrong:
		b.left = wrong(t, data)
		resp.Size = int64(len(b.left))
	}
	resp.Body = io.NopCloser(b)
	return resp
}

// wrong returns what a broken upstream may send in place of data: a page for people,
// or the file of another version, which only a checksum database tells from the right
// one.
func wrong(t target.Target, data []byte) []byte {
	mod, version := place(t)
	if t.Kind == target.Zip && version%2 == 1 {
		bad := bytes.Clone(data)
		bad[len(bad)/2] ^= 1
		return bad
	}
	if t.Kind == target.Mod && version%2 == 1 {
		return []byte("module " + modulePath(mod) + "\n// moved\n")
	}
	return []byte("<!DOCTYPE html><html>sign in to the wireless network</html>")
}

// cut tells whether the member cannot reach upstream.
func (s *source) cut() bool {
	here, there := membertest.Host(s.host), membertest.Host(s.out.host)
	return s.out.net.Blocked(here, there, membertest.Streams) || s.out.net.Blocked(there, here, membertest.Streams)
}

// pause passes time, and waits while the member is frozen.
func (s *source) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ended(ctx)
	case <-s.dead:
		return trouble(cache.Broken, "nobody asks any more")
	}
	for thawed := s.out.net.Frozen(s.host); thawed != nil; thawed = s.out.net.Frozen(s.host) {
		select {
		case <-thawed:
		case <-s.dead:
			return trouble(cache.Broken, "nobody asks any more")
		}
	}
	return nil
}

// late fails after a while.
func (s *source) late(ctx context.Context, after time.Duration, reason cache.Reason, text string) error {
	if err := s.pause(ctx, after); err != nil {
		return err
	}
	return trouble(reason, text)
}

func trouble(reason cache.Reason, text string) error {
	return &cache.Error{Reason: reason, Source: "upstream.test", Text: text}
}

func ended(ctx context.Context) error {
	return &cache.Error{Reason: cache.Slow, Source: "upstream.test", Text: "gave up waiting", Err: context.Cause(ctx)}
}

// trickle is a body.
type trickle struct {
	source *source
	ctx    context.Context //nolint:containedctx // of the fetch, which bounds the body
	left   []byte
	step   int
	pause  time.Duration
	bad    mood // how it ends, ok for well
}

func (b *trickle) Read(p []byte) (int, error) {
	if len(b.left) == 0 {
		return 0, b.last()
	}
	if err := b.source.pause(b.ctx, b.pause); err != nil {
		return 0, err
	}
	if b.source.cut() {
		return 0, b.source.late(b.ctx, upstreamStall, cache.Slow, "stalled")
	}
	n := copy(p, b.left[:min(b.step, len(b.left))])
	b.left = b.left[n:]
	return n, nil
}

func (b *trickle) last() error {
	switch b.bad {
	case moodStall:
		return b.source.late(b.ctx, upstreamStall, cache.Slow, "stalled")
	case moodCut:
		return trouble(cache.Broken, "broke off")
	default:
		return io.EOF
	}
}

// endReader tells how a body was left: nil for read to its end.
type endReader struct {
	io.Reader

	end func(error)
}

func (r *endReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	switch err {
	case nil:
	case io.EOF:
		r.end(nil)
	default:
		r.end(err)
	}
	return n, err
}

// Close implements io.Closer. A body that was not read to its end has failed.
func (r *endReader) Close() error {
	r.end(io.ErrUnexpectedEOF)
	return nil
}
