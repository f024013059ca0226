package copies_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/copies"
	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

func parse(t testing.TB, name string) target.Target {
	t.Helper()
	parsed, err := target.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// modName is the name of a go.mod.
func modName(i int) string { return fmt.Sprintf("example.com/m%d/@v/v1.0.0.mod", i) }

// viewOf places nodes; an id begins with its region, which is one letter.
func viewOf(t testing.TB, ids ...string) *ring.View {
	t.Helper()
	var table ring.Members
	for _, id := range ids {
		m := ring.Member{
			ID: id, Epoch: 1, State: ring.Active, Role: ring.Node, Region: id[:1], Weight: 1, Addr: id, Spec: ring.DefaultSpec().Hash(),
		}
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	view, err := ring.NewView(ring.DefaultSpec(), &table)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// others are the nodes of a test that are no Keepers: they note what they are told.
type others struct {
	t *testing.T

	mu       sync.Mutex
	down     bool
	fails    error
	view     uint64 // digest of theirs, 0 = that of the caller
	answer   func(name string) ringmodv1.Outcome
	told     []*ringmodv1.AnnounceRequest
	last     string            // who was told last
	held     map[string][]byte // what can be pulled
	silent   bool              // whoever is told of something
	downOnly string            // the one that is down
	takes    time.Duration     // until something is there to be pulled
	panics   bool              // whoever pulls
	asked    int
	most     int // asked at the same time
	now      int
}

func (o *others) Usable(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.down && id != o.downOnly
}

func (o *others) Answers(context.Context, string) bool {
	o.mu.Lock()
	silent := o.silent
	o.mu.Unlock()
	if silent {
		time.Sleep(1500 * time.Millisecond)
	}
	return !silent
}

func (o *others) Conn(id string) (grpc.ClientConnInterface, error) {
	return &conn{others: o, id: id}, nil
}

// Get implements copies.Nodes.
func (o *others) Get(_ context.Context, _ string, req cache.Request, _ wire.Options) (*cache.Object, error) {
	time.Sleep(o.takes)
	o.mu.Lock()
	defer o.mu.Unlock()
	if req.Mode != cache.Peek || req.Hops != 1 {
		o.t.Errorf("pulled with %+v", req)
	}
	o.asked++
	o.now++
	o.most = max(o.most, o.now)
	if o.panics {
		o.now--
		panic("nobody has thought of this")
	}
	data, ok := o.held[req.Target.String()]
	if !ok {
		o.now--
		return nil, &cache.Error{Reason: cache.NotCached}
	}
	return &cache.Object{Size: int64(len(data)), SHA256: sha256.Sum256(data), Body: &body{Reader: bytes.NewReader(data), others: o}}, nil
}

type body struct {
	io.Reader

	others *others
}

func (b *body) Close() error {
	b.others.mu.Lock()
	defer b.others.mu.Unlock()
	b.others.now--
	return nil
}

type conn struct {
	grpc.ClientConnInterface

	others *others
	id     string
}

// Invoke implements grpc.ClientConnInterface.
func (c *conn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	o := c.others
	o.mu.Lock()
	if o.silent {
		o.mu.Unlock()
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	defer o.mu.Unlock()
	req, ok := args.(*ringmodv1.AnnounceRequest)
	if !ok || method != ringmodv1.PeerService_Announce_FullMethodName {
		o.t.Errorf("call of %s", method)
	}
	if n := len(req.GetCopies()); n == 0 || n > 1024 || proto.Size(req) > 4<<20 {
		o.t.Errorf("a call with %d copies of %d bytes", n, proto.Size(req))
	}
	if o.fails != nil {
		return o.fails
	}
	o.told, o.last = append(o.told, req), c.id
	resp := &ringmodv1.AnnounceResponse{ViewDigest: req.GetViewDigest(), ViewSeq: req.GetViewSeq()}
	if o.view != 0 {
		resp.ViewDigest = o.view
	}
	for _, each := range req.GetCopies() {
		resp.Outcomes = append(resp.Outcomes, o.answer(each.GetTarget()))
	}
	proto.Merge(reply.(proto.Message), resp)
	return nil
}

func (o *others) calls() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.told)
}

// names returns what was told, sorted, with repetitions.
func (o *others) names() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var names []string
	for _, req := range o.told {
		for _, c := range req.GetCopies() {
			names = append(names, c.GetTarget())
		}
	}
	slices.Sort(names)
	return names
}

// pulls returns how often it was pulled from, and how many did so at a time.
func (o *others) pulls() (asked, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked, o.most
}

func (o *others) set(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
}

// holder is the node of a Keeper: it takes what comes.
type holder struct {
	mem    *store.Mem
	keeper *copies.Keeper

	mu    sync.Mutex
	fills int
	fail  error
}

func (h *holder) set(fills int, fail error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fills, h.fail = fills, fail
}

func (h *holder) Fills() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fills
}

// Holding implements copies.Node.
func (h *holder) Holding(_ context.Context, t target.Target) (*ringmodv1.Holding, error) {
	held := &ringmodv1.Holding{Target: t.String()}
	if entry, err := h.mem.Stat(t.String()); err == nil {
		held.Copy = &ringmodv1.Copy{Target: t.String(), Size: uint64(entry.Size), Sha256: entry.SHA256[:]}
	} else if doc, err := h.mem.Document(t.String()); err == nil {
		held.Copy = &ringmodv1.Copy{Target: t.String(), Size: uint64(len(doc.Body)), Sha256: make([]byte, 32)}
	}
	return held, nil
}

// Take implements copies.Node.
func (h *holder) Take(_ context.Context, t target.Target, obj *cache.Object) error {
	defer obj.Body.Close()
	h.mu.Lock()
	err := h.fail
	h.mu.Unlock()
	if err != nil {
		return err
	}
	data, err := io.ReadAll(obj.Body)
	if err != nil {
		return err
	}
	return put(h.keeper.Store(), t.String(), string(data))
}

func put(s store.Store, name, data string) error {
	p, err := s.Create(name)
	if err != nil {
		return err
	}
	defer p.Abort()
	if _, err := io.WriteString(p, data); err != nil {
		return err
	}
	_, err = p.Commit(store.Proof{})
	return err
}

// rig is a Keeper named a1 among others.
type rig struct {
	*copies.Keeper

	t      *testing.T
	others *others
	node   *holder
	view   *ring.View
	end    func()
}

// newRig makes a Keeper of a view with a1 and runs it unless cfg is incomplete.
func newRig(t *testing.T, view *ring.View, cfg copies.Config) *rig {
	t.Helper()
	o := &others{t: t, held: map[string][]byte{}, answer: func(string) ringmodv1.Outcome { return ringmodv1.Outcome_OUTCOME_HELD }}
	return newRigOn(t, view, cfg, o, store.NewMem())
}

func newRigOn(t *testing.T, view *ring.View, cfg copies.Config, o *others, mem *store.Mem) *rig {
	t.Helper()
	cfg.Self, cfg.Region, cfg.View, cfg.Nodes = "a1", "a", func() *ring.View { return view }, o
	cfg.Store, cfg.Documents = mem, mem
	r := &rig{Keeper: copies.New(cfg), t: t, others: o, node: &holder{mem: mem}, view: view}
	r.node.keeper = r.Keeper
	r.Use(r.node)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Run(ctx)
	}()
	r.end = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(r.end)
	return r
}

// put stores an object as the node does.
func (r *rig) put(name string) {
	r.t.Helper()
	if err := put(r.Store(), name, "data of "+name); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) asked() int {
	asked, _ := r.others.pulls()
	return asked
}

// announce calls the service of the Keeper as another node does.
func (r *rig) announce(ctx context.Context, req *ringmodv1.AnnounceRequest) (*ringmodv1.AnnounceResponse, error) {
	return r.Announce(ctx, req)
}

func copyOf(name, data string) *ringmodv1.Copy {
	sum := sha256.Sum256([]byte(data))
	return &ringmodv1.Copy{Target: name, Size: uint64(len(data)), Sha256: sum[:]}
}

var errDown = status.Error(codes.Unavailable, "gone")

var errFull = errors.New("the disk is full")
