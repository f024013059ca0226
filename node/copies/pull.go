package copies

import (
	"cmp"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node/store"
)

// Limits of pulls (cluster.md 4.12).
const (
	pullers   = 4
	hurriers  = 8       // beside them, for what a holder waits for
	maxPulls  = 1 << 14 // that wait
	pullLimit = 10 * time.Minute
	pullRead  = 64 << 10 // bytes at a time, so that the rate is kept finely

	// While more than busyFills run, a pull waits for them, at most yieldLimit.
	busyFills  = 16
	yieldLimit = 5 * time.Second
	yieldPause = 100 * time.Millisecond
)

// pull is an object that somebody has announced, or that Pull is to get.
type pull struct {
	target target.Target
	digest [32]byte // as announced
	holder string
	done   chan outcome // of one; nil = nobody waits

	// Guarded by pulls.mu.
	begun  bool
	urgent bool // the holder waits for it
}

// outcome is how a pull ended.
type outcome struct {
	result string
	err    error
}

// pulls are those that wait or run.
type pulls struct {
	pace  *pace
	queue chan *pull
	later chan *pull // of Pull
	soon  chan *pull // the urgent ones of queue, too

	mu     sync.Mutex
	known  map[string]*pull // by target
	taking map[string]bool  // those that are being stored
}

func newPulls(rate int64) *pulls {
	return &pulls{
		pace: &pace{rate: rate}, queue: make(chan *pull, maxPulls), later: make(chan *pull), soon: make(chan *pull, maxPulls), known: map[string]*pull{}, taking: map[string]bool{},
	}
}

// room tells whether n more can wait.
func (p *pulls) room(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.known)+n <= maxPulls
}

// add queues what is not queued yet.
func (p *pulls) add(each *pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := each.target.String()
	if p.known[name] != nil || len(p.known) >= maxPulls {
		return
	}
	select {
	case p.queue <- each:
		p.known[name] = each
	default: // those that turned out to be urgent are still in there
	}
}

// hurry puts an object before those that nobody waits for.
func (p *pulls) hurry(each *pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := each.target.String()
	if known := p.known[name]; known != nil {
		each = known
	}
	if each.begun || each.urgent || p.known[name] == nil && len(p.known) >= maxPulls {
		return
	}
	select {
	case p.soon <- each:
		p.known[name], each.urgent = each, true
	default: // it waits, if it did
	}
}

// start tells whether a pull is to be made, and not made already.
func (p *pulls) start(each *pull) (urgent, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ok = !each.begun
	each.begun = true
	return each.urgent, ok
}

// begin makes an object of Pull known, false if it is already.
func (p *pulls) begin(each *pull) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := each.target.String()
	if p.known[name] != nil {
		return false
	}
	p.known[name] = each
	return true
}

func (p *pulls) has(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[name] != nil
}

func (p *pulls) end(each *pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, each.target.String())
}

// takes tells whether an object of that name is being stored by a pull.
func (p *pulls) takes(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taking[name]
}

func (p *pulls) take(name string) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taking[name] = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.taking, name)
	}
}

// pullAll pulls one object after the other.
func (k *Keeper) pullAll(ctx context.Context) {
	for {
		select {
		case p := <-k.pulls.queue:
			k.pullOne(ctx, p)
			continue
		default:
		}
		select {
		case <-ctx.Done():
			return
		case p := <-k.pulls.queue:
			k.pullOne(ctx, p)
		case p := <-k.pulls.later:
			if k.pulls.begin(p) {
				k.pullOne(ctx, p)
			} else {
				p.done <- outcome{result: pulledNothing}
			}
		}
	}
}

// pullSoon pulls what is urgent.
func (k *Keeper) pullSoon(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-k.pulls.soon:
			k.pullOne(ctx, p)
		}
	}
}

// Pull gets an object from a holder and stores it, when its turn has come, unless it is
// here by then, or comes because somebody has announced it.
func (k *Keeper) Pull(ctx context.Context, t target.Target, sha256 [32]byte, holder string) (pulled bool, err error) {
	p := &pull{target: t, digest: sha256, holder: holder, done: make(chan outcome, 1)}
	select {
	case k.pulls.later <- p:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	select {
	case o := <-p.done:
		return o.result == pulledOK, o.err
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (k *Keeper) pullOne(ctx context.Context, p *pull) {
	urgent, ok := k.pulls.start(p)
	if !ok {
		return
	}
	defer k.pulls.end(p)
	if !urgent {
		k.yield(ctx)
	}
	result, err := k.pull(ctx, p)
	k.metrics.pulled(cmp.Or(result, pulledFailed)) // after a panic there is none
	if err != nil && ctx.Err() == nil {
		k.log.DebugContext(ctx, "a copy was not pulled", "key", p.target.String(), "peer", p.holder, "err", err)
	}
	if p.done != nil {
		p.done <- outcome{result, err}
	}
}

// yield lets fills go first.
func (k *Keeper) yield(ctx context.Context) {
	for waited := time.Duration(0); waited < yieldLimit && ctx.Err() == nil && k.node.Fills() > busyFills; waited += yieldPause {
		sleep(ctx, yieldPause)
	}
}

// Results of pulls, for metrics.
const (
	pulledOK      = "ok"
	pulledNothing = "held"    // it had come meanwhile
	pulledOther   = "changed" // the holder has other bytes than were announced
	pulledFailed  = "failed"
)

var errChanged = errors.New("other bytes than those that were announced")

// pull gets an object and hands it to the node.
func (k *Keeper) pull(ctx context.Context, p *pull) (result string, err error) {
	defer k.survive(ctx, p.holder, &err)
	if k.isHere(ctx, p.target) || k.adopts(ctx, p.target) {
		return pulledNothing, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pullLimit)
	defer cancel()
	obj, err := k.cfg.Nodes.Get(ctx, p.holder, cache.Request{Target: p.target, Mode: cache.Peek, Hops: 1}, wire.Options{})
	if err != nil {
		return pulledFailed, err
	}
	if fixed(p.target.Kind) && obj.SHA256 != p.digest {
		obj.Body.Close()
		return pulledOther, errChanged
	}
	obj.Body = &paced{obj.Body, ctx, k, p.urgent}
	defer k.pulls.take(p.target.String())()
	if err := k.node.Take(ctx, p.target, obj); err != nil {
		return pulledFailed, err
	}
	return pulledOK, nil
}

// isHere tells whether an object has come, or comes, without us.
func (k *Keeper) isHere(ctx context.Context, t target.Target) bool {
	if !t.Kind.Immutable() {
		return false
	}
	h, err := k.node.Holding(ctx, t)
	return err == nil && (h.GetCopy() != nil || h.GetFilling())
}

// adopts tells whether an object is here after all: after the loss of its index a disk
// finds it when it is asked for.
func (k *Keeper) adopts(ctx context.Context, t target.Target) bool {
	if !t.Kind.Immutable() {
		return false
	}
	obj, err := k.cfg.Store.Open(store.Unused(ctx), t.String())
	if err != nil {
		return false
	}
	obj.File.Close()
	return true
}

// fixed tells whether two copies of a target must have the same bytes. The answer to
// a lookup holds the tree head of its time.
func fixed(kind target.Kind) bool { return kind.Immutable() && kind != target.SumdbLookup }

// paced is a body that is read no faster than the rate allows.
type paced struct {
	io.ReadCloser

	ctx    context.Context //nolint:containedctx // of the pull
	keeper *Keeper
	free   bool // of the rate
}

// Read implements io.Reader.
func (b *paced) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), pullRead)])
	b.keeper.metrics.moved(n)
	if b.free {
		return n, err
	}
	if wait := b.keeper.pulls.pace.spend(n); wait > 0 && !sleep(b.ctx, wait) {
		return n, b.ctx.Err()
	}
	return n, err
}

// pace bounds bytes per second over all pulls.
type pace struct {
	rate int64

	mu   sync.Mutex
	paid time.Time // until when what was read is paid for
}

// slack is how much sooner than the rate has it bytes may come, after a rest.
const slack = 50 * time.Millisecond

// spend returns how long to wait after having read n bytes.
func (p *pace) spend(n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.paid.Before(now) {
		p.paid = now
	}
	p.paid = p.paid.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return p.paid.Sub(now) - slack
}
