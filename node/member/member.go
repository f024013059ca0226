// Package member keeps a process in its cluster: it finds the other members,
// says what this one is, and publishes who owns what as immutable snapshots.
// Nodes and gateways use it alike.
//
// # In and up
//
// In is what the member table says: entries that are Joining, Active or Leaving.
// It decides placement and nothing else does. Up is what memberlist says of the
// process behind an entry: it answers probes. It tells whom to call, together with
// the caller's own experience. A member that dies stays in for Config.OutAfter, so
// that a restart moves no data; then the others write it down as Forgotten. Who
// does so has watched it being down all that time by its own monotonic clock,
// and reached at least half of the nodes that are in that region all that
// time; a minority forgets nobody. A forgotten member that returns sees the
// entry and outranks it.
//
// # The table
//
// Entries are ordered by Lamport epochs and merged by package ring. The
// own entry travels in memberlist's metadata, the whole table (a ringmodv1.View)
// with each push/pull. What [ring.Member.Check] refuses never enters, nor do
// more than 4096 entries, nor epochs that would use up all numbers at a stroke.
// Tombstones are kept for 24 h, and for another 24 h what they stood for is not
// learnt again.
//
// # Names
//
// The name in gossip is "<node id>~<boot id>" with 16 hex digits drawn at each
// start: memberlist refuses a name on a new address for a minute, and a new name
// is seen by all at once. Identity is the node id.
//
// Two processes with one node id that are alive at the same time send each other
// a claim, the age of the process. The younger one stops: its Run returns an
// error that matches ErrDuplicate. A claim is 25 bytes and the node id: 0x01,
// then three big-endian uint64: boot id of the sender, boot id of the receiver,
// age of the sender in ms.
//
// # Finding others
//
// memberlist never heals a split by itself. So each process, every 15 s ± 50 %,
// joins what should be there and is not: seeds, and members that are down and have not
// left. One at a time; each address backs off up to 2 min, but each round tries one. Names of seeds
// are resolved each time. The members known last are saved, and are seeds after a
// restart, never entries.
//
// # States
//
// A node that is configured as Joining goes on as what it was: as its data folder says,
// else as the others know its id. A restart so moves nothing, and who was leaving goes
// on with that. Who has left, or was forgotten while it was away, joins anew, as does one
// of whom nobody has heard; the first of a cluster, which has no seeds, is Active. What
// else becomes of its state is for package life.
//
// # Asking
//
// Who does not gossip may ask: [Register] offers the table over gRPC, and a [Follower]
// is a process that knows the cluster from there alone. A [Syncer] fetches the table of a
// member that has answered a request from a newer view.
//
// # What it never does
//
// Nothing that a remote sends ends the process, but for the claim above. Without
// a key file everybody who reaches the gossip address is believed; with one,
// everybody who holds a key is.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/ringmod/ringmod/internal/refresh"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const outAfter = 10 * time.Minute

// ErrDuplicate is what Run returns when another process that has run for longer
// uses the same node id.
var ErrDuplicate = errors.New("node id is in use by another process")

// What Forget returns for members that it cannot forget.
var (
	ErrUp      = errors.New("member is up")
	ErrUnknown = errors.New("no such member")
	ErrSelf    = errors.New("a member cannot forget itself")
)

// Transport carries gossip: Listen opens a real one, membertest simulates.
type Transport interface {
	memberlist.NodeAwareTransport
	// Addr is where the transport listens.
	Addr() netip.AddrPort
}

// Tombstones are what operators have purged; *purge.Set is one.
type Tombstones interface {
	// Changed returns a channel that is closed when there are more.
	Changed() <-chan struct{}
	// News returns what was learnt after a call that has returned seq, all where that is 0.
	News(seq uint64) (all []*ringmodv1.Tombstone, now uint64)
}

// Config says who a member is and where it finds others.
type Config struct {
	// Cluster is the name of the cluster, 1 to 255 bytes: packets with another one
	// are dropped. Required.
	Cluster string
	// Entry is what the member says about itself at start: ID, State, Role, Region
	// and Addr are required of a node, ID, State, Role and Region of a gateway. Weight 0
	// means 1. Boot, Epoch and Spec are filled in. State Joining stands for the one that
	// the node was in, see above.
	Entry ring.Member
	// Version of the program, of which others are told the first 48 bytes.
	Version string
	// Spec is how objects are placed. Required, see ring.DefaultSpec.
	Spec ring.Spec
	// Transport is closed when Run returns. Required.
	Transport Transport
	// Advertise is the IP that others reach the transport at. The zero value means
	// the one that it listens on, which then must be a single one.
	Advertise netip.Addr
	// KeyFile names a file of AES keys for gossip: base64 of 16, 24 or 32 bytes per
	// line, the first one encrypts, all decrypt. It is read again when it changes.
	// Empty: gossip is neither encrypted nor authenticated.
	KeyFile string
	// Seeds are host:port of members to start from. Empty: wait for others.
	Seeds []string
	// Resolver resolves the hosts of seeds; nil means net.DefaultResolver.
	Resolver Resolver
	// State keeps epoch and last known members across restarts; nil keeps nothing,
	// which suits gateways.
	State State
	// OutAfter is how long a member stays in while it is down; 0 means 10 min.
	OutAfter time.Duration
	// Tombstones are told to who watches the view; nil means that there are none.
	Tombstones Tombstones
	// Refreshes are told to who watches the view; nil means that there are none.
	Refreshes *refresh.Orders
	// Private are the patterns (GOPRIVATE) that who watches the view is told of.
	Private string
	// NewView builds views; nil means ring.NewView. A simulation builds once what many
	// processes build alike.
	NewView func(ring.Spec, *ring.Members) (*ring.View, error)
	// Logger takes what an operator should know; nil means nobody.
	Logger *slog.Logger
}

// Status is what this process knows about one member.
type Status struct {
	Entry  ring.Member
	Up     bool
	Since  time.Time      // of the last change of Up, or when it was first heard of
	Gossip netip.AddrPort // where it gossips or did last; invalid: never met
	Disk   int            // how full its disk is, in eighths of the limit
	Load   int            // how busy it is, in eighths of its limit on fills
	// Version of its program; "": not told.
	Version string
	RTT     time.Duration // of the last probe by gossip, 0 if there was none
}

// Stats counts since the start.
type Stats struct {
	ViewChanges  uint64 // of the view's digest
	ViewErrors   uint64 // views that could not be built; the one before stayed
	Refused      uint64 // entries and states from others that were refused
	Joins        uint64 // attempts of the rejoin loop
	JoinFailures uint64 // those that failed
	Health       int    // memberlist's health score: 0 is well, more means late
}

// Membership is this process in the cluster. All methods may be called at any
// time from any goroutine; those that change the own entry work before Run, too.
type Membership struct {
	cfg       Config
	log       *slog.Logger
	advertise netip.AddrPort
	started   time.Time
	keys      *keyring // nil without KeyFile
	table     *table
	views     *publisher
	rejoin    *rejoiner
	fatal     chan error  // of one error, which ends Run
	announce  signal      // metadata has changed
	joined    *latch      // another member was met
	stopped   *latch      // Run comes to its end
	list      listPointer // nil until Run has begun
	watchers  watchers

	writing sync.Mutex // held to write the own entry, or what is kept of it
	keeper  keeper

	updating lock // held to change memberlist's metadata
	leaving  lock // held to leave memberlist, which panics once it is shut down
	down     bool // it is; guarded by leaving
}

type listPointer = atomic.Pointer[memberlist.Memberlist]

// New checks cfg and builds the first view, in which this process is alone. It
// reads the key file and nothing else, and says nothing to anybody before Run.
// Its errors are made for whoever wrote the configuration.
func New(cfg Config) (*Membership, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OutAfter == 0 {
		cfg.OutAfter = outAfter
	}
	if cfg.NewView == nil {
		cfg.NewView = ring.NewView
	}
	advertise, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	m := &Membership{
		cfg:       cfg,
		log:       cfg.Logger,
		advertise: advertise,
		started:   time.Now(),
		fatal:     make(chan error, 1),
		announce:  newSignal(),
		joined:    newLatch(),
		stopped:   newLatch(),
		updating:  make(lock, 1),
		leaving:   make(lock, 1),
		keeper:    keeper{state: cfg.State, log: cfg.Logger},
	}
	if cfg.KeyFile != "" {
		if m.keys, err = openKeyring(cfg.KeyFile, cfg.Logger); err != nil {
			return nil, err
		}
	}
	m.table = newTable(cfg.Logger, cfg.Entry, cfg.Version)
	m.views = &publisher{
		log: cfg.Logger, changed: newNotice(), entries: m.table.entries, ups: m.table.ups,
		newView: func() (*ring.View, error) { return cfg.NewView(cfg.Spec, m.table.clone()) },
	}
	if err := m.views.build(); err != nil {
		return nil, err
	}
	if m.rejoin, err = newRejoiner(m); err != nil {
		return nil, err
	}
	return m, nil
}

// View returns the placement as it is known now: never nil, never waits.
func (m *Membership) View() *ring.View { return m.views.view.Load() }

// Changed returns a channel that is closed when a new view is published or a
// member has come up or gone down. To miss nothing, call it before you look.
func (m *Membership) Changed() <-chan struct{} { return m.views.changed.wait() }

// Joined returns a channel that is closed once another member was met, or when Run has
// begun if there is nobody to meet: no seeds, and no data of a node that was joining or
// leaving among others.
func (m *Membership) Joined() <-chan struct{} { return m.joined.ch }

// Up tells whether memberlist takes the member for alive, by its entry's boot id.
// It is seconds behind the truth: callers have their own experience as well.
func (m *Membership) Up(id string) bool { return m.table.isUp(id) }

// Members returns all entries, tombstones included, sorted by id.
func (m *Membership) Members() []Status { return m.table.status() }

// Entry returns the own entry.
func (m *Membership) Entry() ring.Member { return m.table.ownEntry() }

// Addr returns the gRPC address of a member that is in.
func (m *Membership) Addr(id string) (string, bool) {
	e, ok := m.table.member(id)
	return e.Addr, ok && e.Addr != ""
}

// Member returns the entry of a member that is in.
func (m *Membership) Member(id string) (ring.Member, bool) { return m.table.member(id) }

// RTT returns the round trip of the last probe of a member by gossip, 0 if there
// was none.
func (m *Membership) RTT(id string) time.Duration { return m.table.rtt(id) }

// GossipAddr returns where others reach this member's gossip.
func (m *Membership) GossipAddr() netip.AddrPort { return m.advertise }

// SetState writes the own entry with another state and tells the others. It does
// not wait for them.
func (m *Membership) SetState(ctx context.Context, state ring.State) error {
	m.table.settle()
	return m.write(ctx, func(e *ring.Member) { e.State = state })
}

// SetReadOnly says whether this member stores anything new. The entry is written
// only if that is news.
func (m *Membership) SetReadOnly(ctx context.Context, readOnly bool) error {
	if m.Entry().ReadOnly == readOnly {
		return nil
	}
	return m.write(ctx, func(e *ring.Member) { e.ReadOnly = readOnly })
}

// Forget takes a member that is down out of the cluster for good, as happens by itself
// after Config.OutAfter where most of its region is reached. Others hear of it within
// seconds. With force it takes out one that seems up, too, which stays out if it does not
// hear of that. It is no harm if the member comes back: it is in again. The error matches
// ErrUp, ErrUnknown or ErrSelf.
func (m *Membership) Forget(ctx context.Context, id string, force bool) error {
	if err := m.table.forgetByOrder(ctx, id, force); err != nil {
		return fmt.Errorf("forgetting %q: %w", id, err)
	}
	return nil
}

// SetLoad says how full the disk and how busy the member is, each in eighths of
// its limit, 0 to 8. It is a hint and changes no epoch.
func (m *Membership) SetLoad(disk, load int) {
	if m.table.setLoad(class(disk), class(load)) {
		m.announce.give()
	}
}

func class(n int) uint32 { return uint32(min(max(n, 0), maxClass)) }

// Snapshot returns the table as others get it, for GetView and WatchView.
func (m *Membership) Snapshot() *ringmodv1.View {
	v := encodeView(m.cfg.Cluster, m.cfg.Spec, m.table.clone())
	v.ViewDigest = m.View().Digest()
	return v
}

// Merge takes in a table that was fetched over GetView. Entries that are out of
// bounds are left out and counted; a table of another cluster is an error.
func (m *Membership) Merge(v *ringmodv1.View) error {
	return m.table.merge(m.cfg.Cluster, v)
}

// Stats returns what was counted.
func (m *Membership) Stats() Stats {
	s := Stats{
		ViewChanges:  m.views.changes.Load(),
		ViewErrors:   m.views.failures.Load(),
		Refused:      m.table.refused.Load(),
		Joins:        m.rejoin.joins.Load(),
		JoinFailures: m.rejoin.failures.Load(),
	}
	if list := m.list.Load(); list != nil {
		s.Health = list.GetHealthScore()
	}
	return s
}

// ReloadKeys reads the key file again, which happens by itself within 5 s of a
// change. On an error the keys stay as they are.
func (m *Membership) ReloadKeys() error {
	if m.keys == nil {
		return errors.New("gossip has no key file")
	}
	return m.keys.reload()
}

// write gives the own entry a new epoch, with whatever change does to it. Epoch and
// state are on disk before anybody hears of them.
func (m *Membership) write(ctx context.Context, change func(*ring.Member)) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	own := m.table.ownEntry()
	change(&own)
	own.Epoch = m.table.nextEpoch()
	m.keeper.reserve(ctx, own)
	if err := m.table.writeOwn(own); err != nil {
		return fmt.Errorf("writing the own entry: %w", err)
	}
	m.announce.give()
	return nil
}
