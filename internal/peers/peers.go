// Package peers keeps the connections of a process to the nodes of its cluster,
// and knows how each of them does.
//
// # Connections
//
// A member is dialled when it is first asked for something: a second connection
// beside the first when that is busy, so that one stream's loss does not stall all.
// Nobody waits for the second while the first stands. Small objects of nodes in our
// own region are asked for over a wire.Lane, and by a call when that does not
// answer. A member's address, boot id,
// role and region make one life of it; when any of them changes, it is dialled
// anew and everything that was known of it is forgotten. Connections of a life
// that has ended, or of a member that has left the view, are closed once the last
// call on them has. Whom to call, and in which order, is for the caller to say.
//
// # Breakers
//
// Each Get has one outcome, at the end of its body:
//
//   - A success: the object, or any *cache.Error: the node is there and says what
//     is the matter. So is a body that the caller closes before its end.
//   - A failure: a *wire.PeerError.
//   - A flaw: a *wire.PeerError with DataLoss, a bad copy or an answer that breaks
//     the rules. The node is there, but what it sends is no good: half a failure.
//   - Nothing: overload (ResourceExhausted, wire.ErrCrowded), for busy is not dead,
//     and the end of the caller's context.
//
// The breaker of a peer opens after 5 failures in a row, flaws not counted, or
// when 10 of the last 20 outcomes were failures or flaws. Run then asks for the
// peer's health, off the data path, 1 s later and after that at growing distances
// of up to 10 s. An answer puts the breaker on trial: the peer is usable, a
// success closes the breaker and the first failure opens it again. What began
// before the breaker changed has no say any more.
//
// A call that its caller gave up before the peer had answered, as hedging does
// with every slow peer, is not held against it; nor is a first message that did
// not come within a limit of less than 1 s, or of less than wire.Silence where
// there was no connection yet. But Run asks for the peer's health within a second,
// and silence opens the breaker; an error counts as a failure.
//
// Where a fill may begin nobody gives up before wire.Silence, so Run asks for the peer's
// health when half of that has passed; if it has not answered either when the call ends,
// the breaker opens at once, and not after four more have waited as long.
//
// An open breaker refuses nothing: it is advice, see Usable.
//
// # What it never does
//
// It never retries, never asks another peer, and holds no lock while it calls.
package peers

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// ErrUnknown says that there is no such member to ask: it is not in, has no
// address, or is this process itself. It is wrapped in a *wire.PeerError.
var ErrUnknown = errors.New("not a member that can be asked")

// ErrClosed says that Run has returned. It is wrapped in a *wire.PeerError.
var ErrClosed = errors.New("connections are closed")

// View is what a Set needs to know of the cluster. Its methods are called for
// each request.
type View interface {
	// View returns the placement as it is known now, nil while there is none.
	View() *ring.View
	// Up tells whether the member is believed to be alive.
	Up(id string) bool
	// Member returns the entry of a member that is in.
	Member(id string) (ring.Member, bool)
}

// Config says who asks, and how.
type Config struct {
	Self   string // own member id, which is never dialled
	Region string // own region
	View   View   // required
	// Credentials are those for a connection to this member; nil = insecure.
	Credentials func(id string, role ring.Role) credentials.TransportCredentials
	// Dial connects to a member's address; nil = TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	Pool *wire.Pool // nil = one for this Set
	// OnView is told that a member has answered with another view than ours, with
	// its digest and sequence number. It must not block. nil = nobody.
	OnView func(id string, digest, seq uint64)
	// RTT returns the round trip to a member as gossip measures it, 0 = not known;
	// nil = never known.
	RTT     func(id string) time.Duration
	Tracers trace.TracerProvider  // of calls of Get; nil = none
	Metrics prometheus.Registerer // nil = none
	Logger  *slog.Logger          // nil = nobody
}

// Stats is how a peer does.
type Stats struct {
	InFlight int // calls of Get whose bodies have not ended
	// Latency is the mean time to a first message, of late, for what the peer had
	// at hand; fills do not count. It falls while nothing is asked, so that who was
	// slow is tried again. 0 = not known.
	Latency time.Duration
	P95     time.Duration // of the last 64 such times; 0 = not known
	RTT     time.Duration // by gossip, else the shortest of those times; 0 = not known
}

// Set is the peers of a process. Its methods may be called at any time from any
// goroutine.
type Set struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // of one; a breaker has opened

	mu      sync.RWMutex
	closed  bool
	peers   map[string]*peer
	retired []*peer        // to be closed when they are idle
	running sync.WaitGroup // lanes; grows under mu, and not once it is closed
}

// New returns a Set without any connection. It panics when the metrics are
// registered already.
func New(cfg Config) *Set {
	if cfg.Pool == nil {
		cfg.Pool = new(wire.Pool)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	s := &Set{cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), peers: make(map[string]*peer)}
	s.metrics = newMetrics(cfg.Metrics, s)
	return s
}

// Get asks a member for an object, as wire.Get does, and keeps account of it. It
// sets node, pool, view and region in o, and passes the header on to o.OnHeader.
//
// The body is an io.ReadSeeker for an object that came whole with the header and
// a *Body for one that streams. The caller closes it.
func (s *Set) Get(ctx context.Context, id string, req cache.Request, o wire.Options) (*cache.Object, error) {
	p, err := s.peer(id)
	if err != nil {
		return nil, err
	}
	return p.get(ctx, req, s.stamp(id, o))
}

// Conn returns the connections to a member, for the other services. Each call
// takes the least busy one at that time, and none feeds the breaker.
func (s *Set) Conn(id string) (grpc.ClientConnInterface, error) {
	if _, err := s.peer(id); err != nil {
		return nil, err
	}
	return conn{s, id}, nil
}

// Usable tells whether to call a member: it is up, and its breaker is not open. A
// caller that finds nobody usable had better try all the same.
func (s *Set) Usable(id string) bool {
	if id == s.cfg.Self || !s.cfg.View.Up(id) {
		return false
	}
	p := s.current(id)
	return p == nil || !p.breaker.isOpen()
}

// Stats tells how a peer does.
func (s *Set) Stats(id string) Stats {
	var st Stats
	if p := s.current(id); p != nil {
		st = p.stats()
	}
	if s.cfg.RTT != nil {
		if rtt := s.cfg.RTT(id); rtt > 0 {
			st.RTT = rtt
		}
	}
	return st
}

// Answers tells whether a member says, within 1.5 s, that it is well: for who has met
// silence and had better not meet it again at the next one.
func (s *Set) Answers(ctx context.Context, id string) bool {
	p, err := s.peer(id)
	if err != nil {
		return false
	}
	err = p.healthy(ctx, suspicion)
	if err != nil && ctx.Err() == nil {
		p.suspect()
	}
	return err == nil
}

// stamp completes the options of a call.
func (s *Set) stamp(id string, o wire.Options) wire.Options {
	t := &ringmodv1.GetRequest{
		RequestId: o.Template.GetRequestId(), Freshness: o.Template.GetFreshness(), CallerRegion: s.cfg.Region,
	}
	t.ViewDigest, t.ViewSeq = s.view()
	o.Template, o.Node = t, id
	if o.Pool == nil {
		o.Pool = s.cfg.Pool
	}
	next := o.OnHeader
	o.OnHeader = func(h *ringmodv1.Header) {
		s.compare(id, h.GetViewDigest(), h.GetViewSeq())
		if next != nil {
			next(h)
		}
	}
	return o
}

// view returns digest and sequence number of the own view, zeros without one.
func (s *Set) view() (digest, seq uint64) {
	if v := s.cfg.View.View(); v != nil {
		return v.Digest(), v.Seq()
	}
	return 0, 0
}

// compare tells OnView of a view that differs from ours.
func (s *Set) compare(id string, digest, seq uint64) {
	if s.cfg.OnView == nil || seq == 0 {
		return
	}
	if own, ownSeq := s.view(); ownSeq == 0 || own != digest {
		s.cfg.OnView(id, digest, seq)
	}
}

// current returns the peer as far as it has been asked for something in this life
// of it, else nil.
func (s *Set) current(id string) *peer {
	m, ok := s.cfg.View.Member(id)
	if !ok {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if p := s.peers[id]; p != nil && p.life == lifeOf(m) {
		return p
	}
	return nil
}

// peer returns the peer as the view has it now.
func (s *Set) peer(id string) (*peer, error) {
	if p := s.current(id); p != nil {
		return p, nil
	}
	m, ok := s.cfg.View.Member(id)
	if !ok || m.Addr == "" || id == s.cfg.Self {
		return nil, &wire.PeerError{Node: id, Code: codes.Unavailable, Err: ErrUnknown}
	}
	p, err := s.newPeer(m)
	if err != nil {
		return nil, &wire.PeerError{Node: id, Code: codes.Unavailable, Err: err}
	}
	kept, err := s.keep(p)
	if kept != p {
		p.close() // it has not been used
	}
	return kept, err
}

// keep makes p the peer of its id, unless somebody else has just done so with one
// of the same life.
func (s *Set) keep(p *peer) (*peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, &wire.PeerError{Node: p.id, Code: codes.Unavailable, Err: ErrClosed}
	}
	old := s.peers[p.id]
	if old != nil && old.life == p.life {
		return old, nil
	}
	if old != nil {
		s.retire(old)
	}
	s.peers[p.id] = p
	return p, nil
}

// retire moves a peer aside, to be closed when its last call has ended. s.mu is
// held.
func (s *Set) retire(p *peer) {
	delete(s.peers, p.id)
	s.retired = append(s.retired, p)
	if p.stopWatch != nil {
		p.stopWatch()
	}
}
