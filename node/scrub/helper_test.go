package scrub_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/scrub"
	"github.com/ringmod/ringmod/node/store"
)

func name(i int) string { return fmt.Sprintf("example.com/m%03d/@v/v1.0.0.zip", i) }

func parse(t *testing.T, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// disk is a store whose bytes can be harmed. It reads a MiB in readTime.
type disk struct {
	t    *testing.T
	news chan struct{}

	mu       sync.Mutex
	readTime time.Duration
	entries  map[string]store.Entry
	bytes    map[string][]byte
	checked  map[string]time.Time
	lost     map[string]store.Loss
	aside    map[string][]byte
	readOnly error
	reads    []string        // names in the order of their checks
	busy     bool            // a check runs
	worked   time.Duration   // by checks
	failing  map[string]bool // cannot be opened
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	return &disk{
		t: t, news: make(chan struct{}, 1), readTime: 10 * time.Millisecond, entries: map[string]store.Entry{}, bytes: map[string][]byte{},
		checked: map[string]time.Time{}, lost: map[string]store.Loss{}, aside: map[string][]byte{}, failing: map[string]bool{},
	}
}

const chunk = 1 << 20

// put stores what nobody may have seen before under that name, unless it was lost.
func (d *disk) put(name string, data []byte, p store.Proof) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, ok := d.bytes[name]; ok && !bytes.Equal(old, data) {
		d.aside[name] = old
	}
	sum := sha256.Sum256(data)
	if l, ok := d.lost[name]; ok && l.SHA256 != sum {
		return store.ErrDiffers
	}
	if d.readOnly != nil {
		return store.ErrReadOnly
	}
	delete(d.lost, name)
	d.bytes[name] = data
	d.entries[name] = store.Entry{Name: name, Size: int64(len(data)), SHA256: sum, Proof: p, Stored: time.Now()}
	return nil
}

// rot flips a byte.
func (d *disk) rot(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bytes[name] = bytes.Clone(d.bytes[name])
	d.bytes[name][len(d.bytes[name])/2] ^= 1
}

// fails makes writing fail, nil = not, and the opening of these objects.
func (d *disk) fails(readOnly error, names ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readOnly = readOnly
	for _, name := range names {
		d.failing[name] = true
	}
}

// read returns what was checked so far.
func (d *disk) read() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.reads)
}

// work is how long checks have read so far.
func (d *disk) work() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.worked
}

func (d *disk) Unchecked(_ context.Context, before time.Time, most int) (b store.Backlog, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, e := range d.entries {
		s := store.Stale{Entry: e, Checked: e.Stored}
		if at := d.checked[name]; at.After(s.Checked) {
			s.Checked = at
		}
		if s.Checked.Before(before) {
			b.Objects, b.Bytes, b.Oldest = b.Objects+1, b.Bytes+e.Size, append(b.Oldest, s)
		}
	}
	slices.SortFunc(b.Oldest, func(x, y store.Stale) int { return cmp.Or(x.Checked.Compare(y.Checked), cmp.Compare(x.Name, y.Name)) })
	b.Oldest = b.Oldest[:min(len(b.Oldest), most)]
	return b, nil
}

func (d *disk) Check(ctx context.Context, name string, pace func(int, time.Duration) error) error {
	d.mu.Lock()
	data, entry, failing := d.bytes[name], d.entries[name], d.failing[name]
	if d.busy {
		d.t.Error("two checks at once")
	}
	d.busy = true
	d.reads = append(d.reads, name)
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.busy = false
	}()
	if failing {
		return errors.New("too many open files")
	}
	if data == nil {
		return fs.ErrNotExist
	}
	for part := range slices.Chunk(data, chunk) {
		took := d.readTime * time.Duration(len(part)) / (1 << 20)
		time.Sleep(took)
		d.mu.Lock()
		d.worked += took
		d.mu.Unlock()
		if err := pace(len(part), took); err != nil {
			return err
		}
	}
	if sha256.Sum256(data) != entry.SHA256 {
		d.lose(name, true)
		return &store.CorruptError{Name: name, Err: errors.New("wrong checksum")}
	}
	return ctx.Err()
}

func (d *disk) lose(name string, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.aside[name] = d.bytes[name]
	if known {
		d.lost[name] = store.Loss{Entry: d.entries[name], Found: time.Now()}
		select {
		case d.news <- struct{}{}:
		default:
		}
	}
	delete(d.entries, name)
	delete(d.bytes, name)
}

func (d *disk) Checked(at time.Time, names ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		if d.readOnly == nil {
			d.checked[name] = at
		}
	}
	return nil
}

func (d *disk) Lost(name string) (store.Loss, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l, ok := d.lost[name]; ok {
		return l, nil
	}
	return store.Loss{}, fs.ErrNotExist
}

func (d *disk) Losses(from string, most int) (all []store.Loss, next string, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, l := range d.lost {
		if name >= from {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b store.Loss) int { return cmp.Compare(a.Name, b.Name) })
	if len(all) > most {
		return all[:most], all[most].Name, nil
	}
	return all, "", nil
}

func (d *disk) LossNews() <-chan struct{} { return d.news }

func (d *disk) Forget(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.lost, name)
	return nil
}

func (d *disk) Stat(name string) (store.Entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.entries[name]; ok {
		return e, nil
	}
	return store.Entry{}, fs.ErrNotExist
}

func (d *disk) ReadOnly() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readOnly
}

func (d *disk) SetAside(_ context.Context, name string, _ error) error {
	d.lose(name, false)
	return nil
}

// world is everything around a scrubber: its disk, a node that stores there, other
// nodes, an upstream, a checksum database.
type world struct {
	t    *testing.T
	disk *disk

	mu        sync.Mutex
	peers     map[string]map[string][]byte // by node, by name
	upstream  map[string][]byte            // nil: none
	confirmed map[string]bool              // hashes; others are wrong
	database  error                        // why it cannot be asked
	fetched   []string                     // from upstream
	announced []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, disk: newDisk(t), peers: map[string]map[string][]byte{}}
}

// hash is the h1 of some bytes: those that begin alike have the same.
func hash(data []byte) string { return fmt.Sprintf("h1:%.4s", data) }

func (w *world) hold(node, name string, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.peers[node] == nil {
		w.peers[node] = map[string][]byte{}
	}
	w.peers[node][name] = data
}

func object(data []byte) *cache.Object {
	return &cache.Object{
		Size: int64(len(data)), SHA256: sha256.Sum256(data), H1: hash(data), Verified: true, Body: io.NopCloser(bytes.NewReader(data)),
	}
}

// peek is what other nodes give.
func (w *world) peek(t target.Target, wanted func([]byte) bool) (*cache.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, node := range []string{"n2", "n3"} {
		if data, ok := w.peers[node][t.String()]; ok && wanted(data) {
			return object(data), nil
		}
	}
	return nil, &cache.Error{Reason: cache.NotCached}
}

func (w *world) Peek(_ context.Context, t target.Target) (*cache.Object, error) {
	return w.peek(t, func([]byte) bool { return true })
}

func (w *world) PeekSame(_ context.Context, t target.Target, sum [32]byte) (*cache.Object, error) {
	return w.peek(t, func(data []byte) bool { return sha256.Sum256(data) == sum })
}

// Take stores, as a node does. What is held stays.
func (w *world) Take(_ context.Context, t target.Target, obj *cache.Object) error {
	data, err := io.ReadAll(obj.Body)
	if _, held := w.disk.Stat(t.String()); held == nil || err != nil {
		return err
	}
	return w.disk.put(t.String(), data, store.Proof{H1: obj.H1, Verified: obj.Verified})
}

func (w *world) Replace(ctx context.Context, t target.Target, obj *cache.Object) error {
	confirmed, err := w.Vet(ctx, t, obj.H1)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(obj.Body)
	if err != nil {
		return err
	}
	return w.disk.put(t.String(), data, store.Proof{H1: obj.H1, Verified: confirmed})
}

func (w *world) Vet(_ context.Context, _ target.Target, h1 string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.database != nil:
		return false, w.database
	case w.confirmed == nil || h1 == "":
		return false, nil
	case w.confirmed[h1]:
		return true, nil
	default:
		return false, &cache.Error{Reason: cache.Mismatch, Text: "the checksum database says otherwise"}
	}
}

// nodes are the others by their ids.
type nodes struct{ *world }

func (n nodes) Get(_ context.Context, id string, req cache.Request, _ wire.Options) (*cache.Object, error) {
	if req.Mode != cache.Peek {
		n.t.Errorf("%s is asked to do more than to look", id)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if data, ok := n.peers[id][req.Target.String()]; ok {
		return object(data), nil
	}
	return nil, &cache.Error{Reason: cache.NotCached}
}

// Get is a fill: from upstream, though a node has it, is what must not be.
func (w *world) Get(ctx context.Context, req cache.Request) (*cache.Object, error) {
	name := req.Target.String()
	if obj, err := w.Peek(ctx, req.Target); err == nil {
		if l, err := w.disk.Lost(name); err == nil && l.SHA256 == obj.SHA256 {
			w.t.Errorf("%s is fetched though another node has it", name)
		}
	}
	w.mu.Lock()
	data, ok := w.upstream[name]
	w.fetched = append(w.fetched, name)
	w.mu.Unlock()
	if !ok {
		return nil, &cache.Error{Reason: cache.NotCached, Text: "offline"}
	}
	_ = w.disk.put(name, data, store.Proof{H1: hash(data)}) // the caller has its bytes all the same
	return object(data), nil
}

// requests returns what was fetched from upstream.
func (w *world) requests() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.fetched)
}

func (w *world) announce(member, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.announced = append(w.announced, member+" "+name)
}

// run starts a scrubber, until the test of a bubble ends.
func (w *world) run(reg prometheus.Registerer) *scrub.Scrubber {
	s := scrub.New(scrub.Config{
		Disk: w.disk, Node: w, Copies: w, Nodes: nodes{w}, Announce: w.announce, Metrics: reg, Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}

func (w *world) wantHeld(name string, want []byte) {
	w.t.Helper()
	w.disk.mu.Lock()
	defer w.disk.mu.Unlock()
	if got := w.disk.bytes[name]; !bytes.Equal(got, want) {
		w.t.Errorf("%s: %.20q, want %.20q", name, got, want)
	}
}

// soon waits for what has begun, but not for what is due in days.
func soon() {
	time.Sleep(time.Minute)
	synctest.Wait()
}
