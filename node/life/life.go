// Package life takes a node through its states, Joining, Active, Leaving and Left, and
// tells whether it is ready. What a restarted node begins as is for package member to
// say.
//
// # Joining
//
// A node that is Joining pulls what it is going to hold, and is not asked for it yet. It
// becomes Active when 95 % of the bytes that were used within 7 days are here, and after
// 15 min whatever is here: the rest is found at those who had it before. It does so at
// once where nobody is up in its region who holds anything: when all others are
// Joining as well, as in a cluster whose nodes were started together, and after 3 s in
// which no seed has answered.
//
// # Leaving
//
// Drain makes it Leaving: it goes on answering while its successors pull what they lack.
// When they hold everything, it is Left and says goodbye, so that nobody asks it any
// more; the streams that run may finish; then Gone is closed, and the process ends. A
// node that has no successor does not begin to leave. One that is stopped or killed
// while it leaves goes on when it is started again.
//
// # Ready
//
// A node is ready for the roll-out to go on with the next one when it is Active, two
// other nodes have had it so in their views for 2 s (all of them where there are fewer;
// gateways have heard of it by then), and 99 % of its partitions lack nothing that was
// used within 7 days and that another node has. After 15 min it is ready all the same, and
// the log says what was missing. Once ready it stays ready until it leaves: what happens
// to others is no reason to take this one out.
package life

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/member"
	"github.com/ringmod/ringmod/ring"
)

// Times and shares (cluster.md 4.5).
const (
	joinPatience  = 3 * time.Second  // without an answer of a seed, before a node that joins is on its own
	seedPatience  = 15 * time.Second // and before it is ready: the first of a cluster has nobody to meet
	joinMax       = 15 * time.Minute // of joining
	readyMax      = 15 * time.Minute // until a node is ready whatever is missing
	joinMissing   = 50               // of 1000 bytes that may be missing when joining ends
	readyMissing  = 10               // of 1000 partitions that may lack something when the node is ready
	streamTimeout = 30 * time.Second // for those that run when everything has been handed over

	look      = time.Second            // between looks at how far things are
	shortLook = 100 * time.Millisecond // while the node joins: mostly there is nothing to wait for
	wakeEvery = 5 * time.Second        // between requests to compare, while somebody waits for it
)

// Conns leads to the other members; *peers.Set is one.
type Conns interface {
	Conn(id string) (grpc.ClientConnInterface, error)
}

// Copies tells what is where; *antientropy.Comparer does.
type Copies interface {
	// Progress tells how much of what this node should hold and was used lately is here.
	Progress() (p antientropy.Progress, known bool)
	// Left tells how much of what is here no successor has confirmed to hold.
	Left() (objects, bytes int64, known bool)
	// Wake asks for a comparison soon.
	Wake()
}

// Config says whose life it is.
type Config struct {
	Membership *member.Membership
	Conns      Conns
	Copies     Copies                // nil: there is nothing to move
	Streams    func() int            // that the node is answering; nil: none
	OnReady    func(now bool)        // called when the node becomes ready, and when it is no more; nil: nobody
	Metrics    prometheus.Registerer // nil: none
	Logger     *slog.Logger          // nil: silent
}

// Life is that of one process of a node.
type Life struct {
	cfg     Config
	log     *slog.Logger
	self    string
	region  string
	started time.Time
	wake    chan struct{} // of one
	gone    chan struct{} // closed when the node has left for good
	ended   chan struct{} // closed when Run has returned

	digest uint64    // of the view when a comparison was asked for last; of Run alone
	asked  time.Time // when that was; of Run alone
	known  time.Time // since when other nodes have this one as active; zero: they have not; of Run alone

	moving sync.Mutex // held to change the state

	mu       sync.Mutex // guards what follows
	missing  error      // why the node is not ready; nil: it is, once it is Active
	patience time.Duration
	handover Handover
	most     int64 // bytes that were left when they were counted first
}

// Handover is how far a node is that leaves.
type Handover struct {
	Known   bool  // what is left has been counted
	Objects int64 // that no successor has confirmed to hold
	Bytes   int64 // of them
	Streams int   // that the node is still answering
	Gone    bool  // it has left, and its process ends
}

// ErrLast says that nobody could take over what a node holds.
var ErrLast = errors.New("no other active node of its region is up to take over what it holds")

// ErrEnded says that the process ends before the node has left. It goes on with it
// when it is started again.
var ErrEnded = errors.New("the process of the node ends; the node goes on leaving when it is started again")

var errStarting = errors.New("starting")

// New returns the life of a node that has not begun. It panics when the metrics are
// registered already.
func New(cfg Config) *Life {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Streams == nil {
		cfg.Streams = func() int { return 0 }
	}
	if cfg.OnReady == nil {
		cfg.OnReady = func(bool) {}
	}
	own := cfg.Membership.Entry()
	l := &Life{
		cfg: cfg, log: cfg.Logger, self: own.ID, region: own.Region, started: time.Now(), missing: errStarting, patience: streamTimeout,
		wake: make(chan struct{}, 1), gone: make(chan struct{}), ended: make(chan struct{}),
	}
	l.register()
	return l
}

// register offers metrics, read at each collection.
func (l *Life) register() {
	if l.cfg.Metrics == nil {
		return
	}
	add := func(name, help string, value func() float64) {
		l.cfg.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	add("ringmod_node_ready", "1 when a roll-out may go on with the next node, as /readyz says, else 0.", func() float64 {
		if l.Ready() != nil {
			return 0
		}
		return 1
	})
	add("ringmod_node_moved_ratio", "While the node joins or leaves, the part of the bytes to move that has moved; else 1.", func() float64 {
		if moved, ok := l.Moved(); ok {
			return float64(moved) / 1000
		}
		return 1
	})
}

// Gone returns a channel that is closed when the node has left for good.
func (l *Life) Gone() <-chan struct{} { return l.gone }

// Run goes from state to state until ctx is done or the node has left. Call it once.
func (l *Life) Run(ctx context.Context) error {
	defer close(l.ended)
	for ctx.Err() == nil {
		changed := l.cfg.Membership.Changed()
		pause := l.step(ctx)
		if pause == 0 {
			return nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// step does what the state asks for, and returns how long to wait before the next
// look, 0 when there is nothing more to do.
func (l *Life) step(ctx context.Context) time.Duration {
	switch l.cfg.Membership.Entry().State {
	case ring.Joining:
		l.join(ctx)
		return shortLook
	case ring.Active:
		l.watch(ctx)
		return look
	case ring.Leaving:
		if l.leave(ctx) {
			return 0
		}
		return look
	default:
		return 0
	}
}

// join ends joining when its time has come.
func (l *Life) join(ctx context.Context) {
	why, now := l.joined()
	if !now {
		l.compare()
		return
	}
	l.moving.Lock()
	defer l.moving.Unlock()
	if l.cfg.Membership.Entry().State != ring.Joining {
		return
	}
	if err := l.cfg.Membership.SetState(ctx, ring.Active); err != nil {
		l.log.ErrorContext(ctx, "cannot become active", "err", err)
		return
	}
	l.log.InfoContext(ctx, "node has joined", "reason", why, "duration_ms", time.Since(l.started).Milliseconds())
}

// joined tells whether joining is over, and why.
func (l *Life) joined() (why string, now bool) {
	switch {
	case !l.met():
		return "no seed has answered", time.Since(l.started) >= joinPatience
	case !l.current():
		return "", false
	case l.others(ring.Active, ring.Leaving) == 0:
		return "no node of the region holds anything", true
	case l.cfg.Copies == nil:
		return "nothing is to be moved", true
	}
	p, known := l.cfg.Copies.Progress()
	if known && p.Missing*1000 <= p.Total*joinMissing {
		return "its share is here", true
	}
	return "joining took too long", time.Since(l.started) >= joinMax
}

func (l *Life) met() bool {
	select {
	case <-l.cfg.Membership.Joined():
		return true
	default:
		return false
	}
}

// current tells whether the view, which is built a moment later, has the nodes in the
// states that are known of them.
func (l *Life) current() bool {
	view, own := l.cfg.Membership.View(), l.cfg.Membership.Entry()
	for _, s := range l.cfg.Membership.Members() {
		i, in := view.Find(s.Entry.ID)
		should := s.Entry.Role == ring.Node && s.Entry.Spec == own.Spec && !s.Entry.State.IsTombstone()
		if in != should || in && view.Member(i).State != s.Entry.State {
			return false
		}
	}
	return true
}

// others counts the other nodes of the region that place as we do, are up, and are in
// one of these states.
func (l *Life) others(states ...ring.State) int {
	n, own := 0, l.cfg.Membership.Entry()
	for _, s := range l.cfg.Membership.Members() {
		e := s.Entry
		if e.ID == l.self || !s.Up || e.Role != ring.Node || e.Region != l.region || e.Spec != own.Spec {
			continue
		}
		for _, state := range states {
			if e.State == state {
				n++
			}
		}
	}
	return n
}

// compare asks for a comparison, at once where the placement is another one than the
// last time, else from time to time.
func (l *Life) compare() {
	if l.cfg.Copies == nil || !l.current() {
		return
	}
	digest := l.cfg.Membership.View().Digest()
	if digest != l.digest || time.Since(l.asked) >= wakeEvery {
		l.digest, l.asked = digest, time.Now()
		l.cfg.Copies.Wake()
	}
}

// Moved returns how much of what is to be moved has moved, in thousandths of its bytes.
// ok: the node joins or leaves.
func (l *Life) Moved() (perMille int, ok bool) {
	var left, total int64
	switch l.cfg.Membership.Entry().State {
	case ring.Joining:
		if l.cfg.Copies != nil {
			p, _ := l.cfg.Copies.Progress()
			left, total = p.Missing, p.Total
		}
	case ring.Leaving:
		l.mu.Lock()
		left, total = l.handover.Bytes, l.most
		l.mu.Unlock()
	default:
		return 0, false
	}
	if total <= 0 {
		return 0, true
	}
	return int(max(0, total-left) * 1000 / total), true
}

// why says how far a state is that is not Active.
func (l *Life) why(state ring.State) error {
	moved, _ := l.Moved()
	return fmt.Errorf("the node is %s, %d %% is done", state, moved/10)
}
