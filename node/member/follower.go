package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/ringmod/ringmod/internal/refresh"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// believeAfter is how long a member has to tell before it is believed alone.
const believeAfter = 5 * time.Minute

// FollowerConfig says whom a process asks that does not gossip.
type FollowerConfig struct {
	// Cluster is the name of the cluster: members of another one are not followed.
	// Required.
	Cluster string
	// From is host:port of the gRPC services of members to start from. Required.
	From []string
	// Credentials are those for a connection to this member. The id is empty and
	// the role zero where only an address is known. nil: nothing is encrypted.
	Credentials func(id string, role ring.Role) credentials.TransportCredentials
	// Dial connects to an address; nil means TCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Resolver resolves the hosts of From; nil means net.DefaultResolver.
	Resolver Resolver
	// Self is the own id, for those who want to know who follows; "" is nobody in particular.
	Self string
	// OnTombstones is told what the followed member tells of purges; nil means nobody.
	OnTombstones func(ctx context.Context, told []*ringmodv1.Tombstone)
	// Refreshes are the orders that take in what the followed member tells of; nil means
	// that it is told for nothing.
	Refreshes *refresh.Orders
	// OnPrivate is told, again and again, what is private to the followed member; nil
	// means nobody.
	OnPrivate func(patterns string)
	// NewView builds views; nil means ring.NewView.
	NewView func(ring.Spec, *ring.Members) (*ring.View, error)
	// Logger takes what an operator should know; nil means nobody.
	Logger *slog.Logger
}

// Follower knows the cluster from one of its members, by WatchView, and is
// none itself: for gateways that must not hold the gossip key. When that member falls
// silent it takes another one, of those it was given or has learnt of; while there is none
// it keeps what it knew last. All methods may be called at any time from any
// goroutine.
//
// A member that has just begun knows little. So what it says is added to what was
// known, by epoch, and replaces it only after 5 min: that ends what remained of a
// cluster that was made anew under the old name.
type Follower struct {
	cfg      FollowerConfig
	log      *slog.Logger
	views    *publisher
	joined   *latch
	seeds    *seeds
	limit    limiter
	refused  atomic.Uint64
	attempts atomic.Uint64
	failures atomic.Uint64

	mu      sync.Mutex // guards what follows
	spec    ring.Spec
	members ring.Members
	seen    map[string]sighting // by id

	// Of Run alone.
	tries map[string]*try // by address
}

// sighting is what the followed member says of another one.
type sighting struct {
	up    bool
	since time.Time // of the last change of up
}

// NewFollower checks cfg. It says nothing to anybody before Run; until then, and
// until a member has answered, nobody is in.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.NewView == nil {
		cfg.NewView = ring.NewView
	}
	if cfg.OnTombstones == nil {
		cfg.OnTombstones = func(context.Context, []*ringmodv1.Tombstone) {}
	}
	if cfg.Refreshes == nil {
		cfg.Refreshes = refresh.New()
	}
	if cfg.OnPrivate == nil {
		cfg.OnPrivate = func(string) {}
	}
	switch {
	case cfg.Cluster == "":
		return nil, errors.New("following a cluster needs its name")
	case len(cfg.From) == 0:
		return nil, errors.New("following a cluster needs the address of a member")
	}
	seeds, err := newSeeds(cfg.From, cfg.Resolver, cfg.Logger)
	if err != nil {
		return nil, err
	}
	f := &Follower{
		cfg: cfg, log: cfg.Logger, seeds: seeds, joined: newLatch(), spec: ring.DefaultSpec(),
		seen: make(map[string]sighting), tries: make(map[string]*try),
	}
	f.views = &publisher{
		log: cfg.Logger, changed: newNotice(), entries: newSignal(), ups: newSignal(),
		newView: func() (*ring.View, error) { return cfg.NewView(f.known()) },
	}
	return f, f.views.build()
}

// View returns the placement as it is known now: never nil, never waits.
func (f *Follower) View() *ring.View { return f.views.view.Load() }

// Changed is as that of Membership.
func (f *Follower) Changed() <-chan struct{} { return f.views.changed.wait() }

// Joined returns a channel that is closed once a member has told its view.
func (f *Follower) Joined() <-chan struct{} { return f.joined.ch }

// Up tells whether the followed member takes another one for alive, or did last.
func (f *Follower) Up(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[id].up
}

// Member returns the entry of a member that is in.
func (f *Follower) Member(id string) (ring.Member, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.members.Get(id)
	return e, ok && !e.State.IsTombstone()
}

// Addr returns the gRPC address of a member that is in.
func (f *Follower) Addr(id string) (string, bool) {
	e, ok := f.Member(id)
	return e.Addr, ok && e.Addr != ""
}

// Members returns all entries, tombstones included, sorted by id. What only
// gossip knows is missing.
func (f *Follower) Members() []Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Status
	for _, e := range f.members.All() {
		all = append(all, Status{Entry: e, Up: f.seen[e.ID].up, Since: f.seen[e.ID].since})
	}
	return all
}

// Stats returns what was counted; Joins are attempts to follow a member.
func (f *Follower) Stats() Stats {
	return Stats{
		ViewChanges:  f.views.changes.Load(),
		ViewErrors:   f.views.failures.Load(),
		Refused:      f.refused.Load(),
		Joins:        f.attempts.Load(),
		JoinFailures: f.failures.Load(),
	}
}

func (f *Follower) known() (ring.Spec, *ring.Members) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spec, f.members.Clone()
}

// Merge takes in a table that was fetched over GetView, as Membership does.
func (f *Follower) Merge(v *ringmodv1.View) error {
	if err := f.checkCluster(v); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t := telling{began: time.Now(), spec: f.spec}
	f.decode(&t, v)
	f.adopt(&t, f.seen)
	return nil
}

// telling is what one member has told in one watch.
type telling struct {
	began   time.Time
	whole   bool // the first message was taken
	spec    ring.Spec
	members ring.Members
}

// take takes in one message. An error means that its sender cannot be followed.
func (f *Follower) take(t *telling, msg *ringmodv1.WatchViewResponse) error {
	v := msg.GetView()
	if err := f.checkCluster(v); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decode(t, v)
	if err := t.respec(v.GetSpec(), &f.members); err != nil {
		f.refused.Add(1)
		return err
	}
	t.whole = true
	f.adopt(t, t.sightings(msg.GetDown()))
	return nil
}

func (f *Follower) checkCluster(v *ringmodv1.View) error {
	if v.GetCluster() == f.cfg.Cluster {
		return nil
	}
	f.refused.Add(1)
	return fmt.Errorf("it is a member of cluster %q, this is one of %q", v.GetCluster(), f.cfg.Cluster)
}

// decode adds the entries of v to what was told, but for what is wrong with them.
func (f *Follower) decode(t *telling, v *ringmodv1.View) {
	for _, p := range v.GetMembers() {
		if err := t.put(p); err != nil {
			f.refused.Add(1)
			if _, ok := f.limit.takeNews(err.Error()); ok {
				f.log.Warn("entry of a member was refused", "err", err)
			}
		}
	}
	t.members.Observe(v.GetViewSeq())
}

// respec takes the spec of the cluster, of which the first message must have one. A
// member that was configured otherwise than most others sees itself as the only owner,
// and is not followed.
func (t *telling) respec(p *ringmodv1.RingSpec, known *ring.Members) error {
	if t.whole && p == nil {
		return nil
	}
	spec, err := decodeSpec(p)
	if err != nil {
		return fmt.Errorf("its placement settings are unknown here: %w", err)
	}
	all := known.Clone()
	all.Merge(&t.members)
	same, others := 0, 0
	for _, e := range all.All() {
		switch {
		case e.Role != ring.Node || e.State.IsTombstone():
		case e.Spec == spec.Hash():
			same++
		default:
			others++
		}
	}
	if same < others {
		return fmt.Errorf("%d nodes place objects as it does and %d otherwise: its --replicas may be wrong", same, others)
	}
	t.spec = spec
	return nil
}

func (t *telling) put(p *ringmodv1.Member) error {
	e, err := decodeMember(p)
	if err != nil {
		return err
	}
	if _, known := t.members.Get(e.ID); !known && t.members.Len() >= maxEntries {
		return errFull
	}
	_, err = t.members.Put(e)
	return err
}

// sightings returns who is up and who is not, of those that were told of.
func (t *telling) sightings(down []string) map[string]sighting {
	seen := make(map[string]sighting, t.members.Len())
	for _, e := range t.members.All() {
		seen[e.ID] = sighting{up: !e.State.IsTombstone()}
	}
	for _, id := range down {
		if _, told := seen[id]; told {
			seen[id] = sighting{}
		}
	}
	return seen
}

// adopt makes what was told known. Of whom it does not tell it says nothing. The caller
// holds mu.
func (f *Follower) adopt(t *telling, told map[string]sighting) {
	before := f.members.All()
	respec := f.spec.Hash() != t.spec.Hash()
	f.spec = t.spec
	if time.Since(t.began) >= believeAfter {
		f.members = *t.members.Clone()
	} else {
		f.members.Merge(&t.members)
	}
	after := f.members.All()
	if respec || !slices.Equal(before, after) {
		f.views.entries.give()
	}
	seen := make(map[string]sighting, len(after))
	for _, e := range after {
		old, known := f.seen[e.ID]
		now, isTold := told[e.ID]
		if !isTold {
			now.up = old.up || !known && !e.State.IsTombstone()
		}
		if now.since = old.since; !known || now.up != old.up {
			now.since = time.Now()
			f.views.ups.give()
		}
		seen[e.ID] = now
	}
	f.seen = seen
}
