package peers

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/spans"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/ring"
)

// links is how many connections there are to a peer. One stream alone does not
// fill what two do, and more bring little (perf.md 6.6).
const links = 2

// life is what a member is reached by. When any of it changes, there is nothing
// left to know of the one before.
type life struct {
	addr, boot, region string
	role               ring.Role
}

func lifeOf(m ring.Member) life { return life{m.Addr, m.Boot, m.Region, m.Role} }

// peer is one life of a member. It never changes but for its counts.
type peer struct {
	id       string
	life     life
	set      *Set
	links    [links]*link
	narrow   [links]*link // for streams that may be read slowly; of a far peer, links again
	breaker  breaker
	latency  latency
	inFlight atomic.Int64 // of get
	asked    atomic.Int64 // since when it is being asked how it is, in nanoseconds since 1970; 0 = it is not
	doubtful atomic.Bool  // somebody has given up waiting for it, and nobody has had an answer since

	stopWatch context.CancelFunc // of the goroutine that asks for its health; nil = there is none; guarded by set.mu
}

func (s *Set) newPeer(m ring.Member) (*peer, error) {
	p := &peer{id: m.ID, life: lifeOf(m), set: s}
	distance, near := wire.Near, m.Region == s.cfg.Region
	if !near {
		distance = wire.Far
	}
	err := s.dialAll(&p.links, m, distance)
	p.narrow = p.links
	if err == nil && near {
		err = s.dialAll(&p.narrow, m, wire.Narrow)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (s *Set) dialAll(to *[links]*link, m ring.Member, d wire.Distance) error {
	for i := range to {
		cc, err := s.dial(m, d)
		if err != nil {
			return err
		}
		to[i] = &link{ClientConn: cc}
	}
	return nil
}

// dial makes a connection that nobody has asked anything yet, and so reaches for
// nobody. Its target is a name without meaning: where to go is the entry's to say.
func (s *Set) dial(m ring.Member, d wire.Distance) (*grpc.ClientConn, error) {
	var creds credentials.TransportCredentials
	if s.cfg.Credentials != nil {
		creds = s.cfg.Credentials(m.ID, m.Role)
	}
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	return grpc.NewClient("passthrough:///"+m.ID, append(append(wire.DialOptions(s.cfg.Pool, d), spans.DialOptions(s.cfg.Tracers, m.ID)...),
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.cfg.Dial(ctx, m.Addr) }),
	)...)
}

// close ends all calls.
func (p *peer) close() {
	for _, l := range p.all() {
		if l != nil {
			_ = l.Close() // it says only that it was closed already
		}
	}
}

// idle tells whether no call is running.
func (p *peer) idle() bool {
	for _, l := range p.all() {
		if l.calls.Load() > 0 {
			return false
		}
	}
	return true
}

// all returns the links, some of them twice.
func (p *peer) all() []*link { return append(p.links[:links:links], p.narrow[:]...) }

// pick returns the least busy connection of those that stand, else of all. When
// it is busy, one that rests is woken for those who come later.
func pick(from *[links]*link) *link {
	best, ready := from[0], from[0].ready()
	for _, l := range from[1:] {
		r := l.ready()
		if (r && !ready) || (r == ready && l.calls.Load() < best.calls.Load()) {
			best, ready = l, r
		}
	}
	if ready && best.calls.Load() > 0 {
		for _, l := range from {
			if l.GetState() == connectivity.Idle {
				l.Connect()
			}
		}
	}
	return best
}

// get asks the peer. o is complete.
func (p *peer) get(ctx context.Context, req cache.Request, o wire.Options) (*cache.Object, error) {
	l := pick(&p.links)
	if o.Narrow {
		l = pick(&p.narrow)
	}
	stood := l.ready() // else the time to connect would be measured
	c := p.begin()
	start := time.Now()
	if fills(req.Mode) {
		defer time.AfterFunc(suspicion, p.suspect).Stop()
	}
	obj, err := p.ask(ctx, l, req, o)
	took := time.Since(start)
	if stood && atHand(obj, err) {
		p.latency.add(took)
	}
	if err != nil {
		result := resultOf(err)
		if result == resultCanceled || impatient(err, stood, took) {
			result = resultCanceled
			p.doubtful.Store(true)
		}
		c.end(result, err)
		if errors.Is(err, wire.ErrSilent) && took >= wire.Silence {
			p.silent(err)
		}
		return nil, err
	}
	if body, ok := obj.Body.(*wire.Body); ok {
		obj.Body = &Body{Body: body, call: c}
	} else { // all of it is here
		c.end(resultOK, nil)
	}
	return obj, nil
}

// ask asks over l's lane what suits it, and where that brings nothing by a call. What is
// traced goes by a call, which takes the trace to the other node.
func (p *peer) ask(ctx context.Context, l *link, req cache.Request, o wire.Options) (*cache.Object, error) {
	if wire.SuitsLane(req, o) && p.life.region == p.set.cfg.Region && !spans.Sampled(ctx) {
		if lane := p.set.lane(l, p.id); lane != nil { //nolint:contextcheck // a lane lasts longer than the request that opens it
			l.calls.Add(1)
			obj := lane.Get(ctx, req, o)
			l.calls.Add(-1)
			if obj != nil {
				return obj, nil
			}
		}
	}
	return wire.Get(ctx, l, req, o)
}

// fills tells whether a call may begin a fill, so that it is given all the time there
// is.
func fills(m cache.Mode) bool { return m == cache.AllowFill || m == cache.Coordinate }

// impatient tells whether it was the caller's limit for a first message that
// ended a call, rather than a silence that says something of the peer.
func impatient(err error, stood bool, took time.Duration) bool {
	limit := time.Second // the least that a gateway waits (cluster.md 4.6)
	if !stood {
		limit = wire.Silence
	}
	return errors.Is(err, wire.ErrSilent) && took < limit
}

// atHand tells whether the peer had no more to do than to look.
func atHand(obj *cache.Object, err error) bool {
	if err != nil {
		return cache.ReasonOf(err) == cache.NotCached
	}
	return obj.Source == cache.Memory || obj.Source == cache.Disk
}

func (p *peer) stats() Stats {
	mean, p95, least := p.latency.look()
	return Stats{InFlight: int(p.inFlight.Load()), Latency: mean, P95: p95, RTT: least}
}

// link is one connection, and counts what runs on it.
type link struct {
	*grpc.ClientConn

	calls atomic.Int64
	lanes lanes
}

func (l *link) ready() bool { return l.GetState() == connectivity.Ready }

// Invoke implements grpc.ClientConnInterface.
func (l *link) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return l.ClientConn.Invoke(ctx, method, args, reply, l.count(opts)...)
}

// NewStream implements grpc.ClientConnInterface.
func (l *link) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return l.ClientConn.NewStream(ctx, desc, method, l.count(opts)...)
}

// count counts a call from now to its end.
func (l *link) count(opts []grpc.CallOption) []grpc.CallOption {
	l.calls.Add(1)
	return append(slices.Clip(opts), grpc.OnFinish(func(error) { l.calls.Add(-1) }))
}

// conn is the connections to a member, whatever life of it is the current one.
type conn struct {
	set *Set
	id  string
}

// Invoke implements grpc.ClientConnInterface.
func (c conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	p, err := c.set.peer(c.id)
	if err != nil {
		return asStatus(err)
	}
	return pick(&p.links).Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (c conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	p, err := c.set.peer(c.id)
	if err != nil {
		return nil, asStatus(err)
	}
	return pick(&p.links).NewStream(ctx, desc, method, opts...)
}

// asStatus returns the error of Set.peer as callers of gRPC expect it.
func asStatus(err error) error {
	code := codes.Unknown
	if e, ok := errors.AsType[*wire.PeerError](err); ok {
		code = e.Code
	}
	return status.Error(code, err.Error())
}
