package audit

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/store"
)

const (
	maxInfo   = 1 << 20          // bytes of a .info that are read
	refsKept  = 8                // repositories whose tags a round remembers
	refsFresh = 10 * time.Minute // for which it believes them
)

// verdict is what a look has shown.
type verdict uint8

const (
	same     verdict = iota
	there            // it has the version, and does not say which commit that is
	untold           // nobody could say anything of this version
	moved            // it is another commit
	vanished         // there is no such version
	gone             // it is not held any more
	troubled         // upstream could not be asked
)

var verdicts = [...]string{same: "same", there: "there", untold: "untold", moved: "moved", vanished: "vanished", gone: "gone", troubled: "trouble"}

func (v verdict) String() string { return verdicts[v] }

// origin is where a version comes from, as the go command writes it into .info.
type origin struct{ VCS, URL, Ref, Hash string }

// said is what upstream says of a version.
type said struct {
	absent       bool
	hash         string // of its commit; "" = not told
	source, text string
}

// round is a series of looks.
type round struct {
	*Auditor

	pause time.Duration
	free  bool // the last look has asked nobody
	refs  map[string]refs
}

// refs are the tags of a repository, or why they could not be had.
type refs struct {
	commits map[string]string
	err     error
	at      time.Time
}

func (a *Auditor) newRound(pause time.Duration) *round {
	return &round{Auditor: a, pause: pause, refs: map[string]refs{}}
}

func (r *round) rest(ctx context.Context) {
	if !r.free {
		sleep(ctx, r.pause)
	}
}

// look looks at one version and keeps what it finds. The error is that of trouble.
func (r *round) look(ctx context.Context, name string) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	r.free = true
	v, err := r.judge(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		v, err = gone, nil
	}
	if v != troubled && v != gone {
		r.mark(time.Now(), name)
	}
	r.metrics.looked(v)
	return v, err
}

// mark keeps when a version was looked at.
func (r *round) mark(at time.Time, name string) {
	if err := r.cfg.Disk.Audited(at, name); err != nil {
		r.log.Warn("audit not indexed", "key", name, "err", err)
	}
}

func (r *round) judge(ctx context.Context, name string) (verdict, error) {
	t, err := target.Parse(name)
	if err != nil {
		return gone, nil //nolint:nilerr // of another program
	}
	held, err := r.held(ctx, name)
	if err != nil {
		return troubled, err
	}
	says, err := r.ask(ctx, t, held)
	if err != nil {
		return troubled, err
	}
	v := verdictOf(held, says)
	r.settle(ctx, t, v, held, says)
	return v, nil
}

func verdictOf(held origin, says said) verdict {
	switch {
	case says.absent:
		return vanished
	case says.source == "":
		return untold
	case says.hash == "" || held.Hash == "":
		return there
	case says.hash == held.Hash:
		return same
	default:
		return moved
	}
}

// held reads what upstream said when the version came.
func (r *round) held(ctx context.Context, name string) (origin, error) {
	obj, err := r.cfg.Disk.Open(store.Unused(ctx), name)
	if err != nil {
		return origin{}, err
	}
	defer obj.File.Close()
	return readOrigin(obj.File)
}

func readOrigin(from io.Reader) (origin, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxInfo))
	if err != nil {
		return origin{}, err
	}
	var info struct{ Origin origin }
	if err := json.Unmarshal(data, &info); err != nil {
		return origin{}, &cache.Error{Reason: cache.Broken, Text: "the .info is not JSON", Err: err}
	}
	return info.Origin, nil
}

// ask asks upstream about a version.
func (r *round) ask(ctx context.Context, t target.Target, held origin) (said, error) {
	resp, vcs, err := r.cfg.Upstream.FetchListed(ctx, t)
	r.free = vcs && err == nil
	switch {
	case vcs:
		return r.askRepository(ctx, t, held, err)
	case isAbsent(err):
		return denied(err), nil
	case err != nil:
		return said{}, err
	}
	defer resp.Body.Close()
	now, err := readOrigin(resp.Body)
	return said{hash: now.Hash, source: resp.Source}, err
}

// askRepository asks version control, which the list has come to after before, what was
// said by then.
func (r *round) askRepository(ctx context.Context, t target.Target, held origin, before error) (said, error) {
	if before != nil && !isAbsent(before) {
		return said{}, before
	}
	if held.VCS != "git" || !strings.HasPrefix(held.Ref, "refs/tags/") {
		return said{}, nil
	}
	tags := r.tagsOf(ctx, t.Path, held.URL)
	switch hash, ok := tags.commits[held.Ref]; {
	case isAbsent(tags.err):
		return denied(tags.err), nil
	case tags.err != nil:
		return said{}, tags.err
	case !ok:
		return said{absent: true, source: held.URL, text: "there is no tag " + strings.TrimPrefix(held.Ref, "refs/tags/")}, nil
	default:
		return said{hash: hash, source: held.URL}, nil
	}
}

// tagsOf asks a repository for its tags, once for all of its versions.
func (r *round) tagsOf(ctx context.Context, path, url string) refs {
	known, ok := r.refs[url]
	if ok && time.Since(known.at) < refsFresh {
		return known
	}
	r.free = false
	if len(r.refs) >= refsKept {
		clear(r.refs)
	}
	known.commits, known.err = r.cfg.Upstream.Refs(ctx, path, url)
	known.at = time.Now()
	if ctx.Err() == nil {
		r.refs[url] = known
	}
	return known
}

// isAbsent tells whether upstream has said that there is no such thing.
func isAbsent(err error) bool {
	reason := cache.ReasonOf(err)
	return err != nil && (reason == cache.NotFound || reason == cache.Gone)
}

func denied(err error) said {
	s := said{absent: true, source: "upstream", text: err.Error()}
	if e, ok := errors.AsType[*cache.Error](err); ok {
		s.text = e.Text
		if e.Source != "" {
			s.source = e.Source
		}
	}
	return s
}
