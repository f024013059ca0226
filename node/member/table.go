package member

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	maxEntries   = 4096
	maxEpochJump = 1 << 32 // above the highest epoch seen
	tombstoneAge = 24 * time.Hour
)

var errFull = fmt.Errorf("the table holds %d entries already", maxEntries)

// table is what this process knows about members, from whatever source. It is
// changed from within memberlist's callbacks, so no method may call memberlist.
type table struct {
	log     *slog.Logger
	id      string // the own one
	boot    string
	version string // of the program, own one
	started time.Time
	refused atomic.Uint64
	limit   limiter
	entries signal // an entry has changed
	ups     signal // a member has come up or gone down
	guard   signal // the own entry or a rival needs attention

	mu      sync.Mutex // guards what follows
	members ring.Members
	own     ring.Member // as written last; members may hold what others made of it
	renew   bool        // own was written before the others' epochs were known
	heir    bool        // own may still be given the state of an earlier life
	// ancestor is the last entry of an earlier life that others have told of, also if own
	// has outranked it from the start.
	ancestor ring.Member
	disk     uint32
	load     uint32
	met      bool                 // a table was merged
	alive    map[string]*instance // by gossip name, what memberlist takes for alive
	records  map[string]*record   // by id
	dropped  map[string]tombstone // by id
}

// instance is one start of a member, while it is alive.
type instance struct {
	id, boot string
	gossip   netip.AddrPort
	since    time.Time
	rival    rival // used if it bears the own id
}

// record is what was seen of a member, besides its entry.
type record struct {
	up         bool
	since      time.Time // of the last change of up
	absent     time.Duration
	gone       time.Time // when the entry became a tombstone
	gossip     netip.AddrPort
	disk, load uint32
	version    string
	rtt        time.Duration
}

// tombstone is what is left of a dropped one.
type tombstone struct {
	epoch uint64
	at    time.Time
}

func newTable(log *slog.Logger, own ring.Member, version string) *table {
	t := &table{
		log:     log,
		id:      own.ID,
		boot:    own.Boot,
		started: time.Now(),
		version: version,
		own:     own,
		renew:   true,
		heir:    own.State == ring.Joining,
		entries: newSignal(),
		ups:     newSignal(),
		guard:   newSignal(),
		alive:   make(map[string]*instance),
		records: make(map[string]*record),
		dropped: make(map[string]tombstone),
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.put(own) // has passed Check
	return t
}

// put merges one entry. The caller holds mu.
func (t *table) put(m ring.Member) error {
	if err := t.admit(m); err != nil {
		return err
	}
	if d, ok := t.dropped[m.ID]; ok && m.Epoch <= d.epoch {
		return nil
	}
	if m.ID == t.id && m.Boot != t.own.Boot && (m.Epoch > t.ancestor.Epoch || m.Epoch == t.ancestor.Epoch && m.State > t.ancestor.State) {
		t.ancestor = m
		t.guard.give()
	}
	old, known := t.members.Get(m.ID)
	changed, err := t.members.Put(m)
	if err != nil || !changed {
		return err
	}
	t.entries.give()
	if !known || old.Spec != m.Spec {
		t.compareSpec(m)
	}
	r := t.record(m.ID)
	r.absent = 0
	if !m.State.IsTombstone() {
		r.gone = time.Time{}
	} else if r.gone.IsZero() {
		r.gone = time.Now()
	}
	if m.ID == t.id {
		t.guard.give()
	}
	t.refresh(m.ID)
	return nil
}

// admit keeps others from filling the table or using up the epochs.
func (t *table) admit(m ring.Member) error {
	if _, known := t.members.Get(m.ID); !known && t.members.Len() >= maxEntries {
		return errFull
	}
	if !t.plausible(m.Epoch) {
		return fmt.Errorf("member %q: epoch %d is far above all others", m.ID, m.Epoch)
	}
	return nil
}

// plausible bounds epochs. A process that knows nobody has nothing to compare
// with, but must keep room for its own.
func (t *table) plausible(epoch uint64) bool {
	if !t.met {
		return epoch <= ring.MaxEpoch/2
	}
	return epoch <= t.members.Seq()+maxEpochJump
}

func (t *table) compareSpec(m ring.Member) {
	if m.Role == ring.Node && m.Spec != t.own.Spec && !m.State.IsTombstone() {
		t.log.Warn("member has other placement settings and owns nothing", "member", m.ID)
	}
}

// complain logs what a remote did wrong, once.
func (t *table) complain(msg string, err error) {
	if _, ok := t.limit.takeNews(err.Error()); ok {
		t.log.Warn(msg, "err", err) //nolint:sloglint // constants of the callers
	}
}

// record returns the record of id, making it. The caller holds mu.
func (t *table) record(id string) *record {
	r, ok := t.records[id]
	if !ok {
		r = &record{since: time.Now(), up: id == t.id}
		t.records[id] = r
	}
	return r
}

// refresh works out anew whether a member is up. The caller holds mu.
func (t *table) refresh(id string) {
	e, ok := t.members.Get(id)
	if !ok {
		return
	}
	in, up := t.alive[gossipName(id, e.Boot)]
	up = up || id == t.id
	r := t.record(id)
	if in != nil {
		r.gossip = in.gossip
	}
	if r.up == up {
		return
	}
	r.up, r.since, r.absent = up, time.Now(), 0
	t.ups.give()
	word := "member is down"
	if up {
		word = "member is up"
	}
	t.log.Info(word, "member", id, "state", e.State.String(), "gossip", r.gossip.String()) //nolint:sloglint // two constants
}

// join takes in what memberlist says about an instance that is alive.
func (t *table) join(name string, gossip netip.AddrPort, m meta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	in, ok := t.alive[name]
	if !ok {
		in = &instance{id: m.entry.ID, boot: m.entry.Boot, since: time.Now()}
		t.alive[name] = in
	}
	in.gossip = gossip
	err := t.put(m.entry)
	if _, known := t.members.Get(in.id); known {
		if r := t.record(in.id); in.id != t.id || in.boot == t.boot {
			r.gossip, r.disk, r.load, r.version = gossip, m.disk, m.load, m.version
		}
	}
	t.refresh(in.id)
	if in.id == t.id && in.boot != t.boot {
		t.guard.give()
	}
	return err
}

// leave notes that memberlist has given up an instance, or that it said goodbye.
func (t *table) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in, ok := t.alive[name]
	if !ok {
		return
	}
	delete(t.alive, name)
	t.refresh(in.id)
	if in.id == t.id {
		t.guard.give()
	}
}

// merge takes in a whole table, but for what is wrong with it.
func (t *table) merge(cluster string, v *ringmodv1.View) error {
	if v.GetCluster() != cluster {
		t.refused.Add(1)
		return fmt.Errorf("table of cluster %q, this is %q", v.GetCluster(), cluster)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var wrong []error
	for _, p := range v.GetMembers() {
		m, err := decodeMember(p)
		if err == nil {
			err = t.put(m)
		}
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	if t.plausible(v.GetViewSeq()) {
		t.members.Observe(v.GetViewSeq())
	}
	t.refused.Add(uint64(len(wrong)))
	if len(wrong) > 0 {
		t.complain("entries of a table were refused", wrong[0])
	}
	t.met = true
	t.guard.give()
	return nil
}

func (t *table) nextEpoch() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.members.NextEpoch()
}

func (t *table) observe(epoch uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.plausible(epoch) {
		t.members.Observe(epoch)
	}
}

// writeOwn replaces the own entry and puts it above all others, with the epoch it has
// if that is high enough still.
func (t *table) writeOwn(own ring.Member) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	own.Epoch = max(own.Epoch, t.members.NextEpoch())
	if own.State == ring.Forgotten {
		return ErrSelf
	}
	if err := t.put(own); err != nil {
		return err
	}
	t.own, t.renew = own, false
	return nil
}

// inherit gives e the state in which it goes on, once, when others have told of an
// earlier life.
func (t *table) inherit(e *ring.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ancestor.Epoch > 0 {
		e.State = t.legacy(e.State)
		t.heir = false
	}
}

// settle says that the state is no longer that of an earlier life.
func (t *table) settle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heir = false
}

// legacy returns the state in which a member goes on that has begun in state: who was
// forgotten joins anew, who has lost its data folder is what it was. The caller holds
// mu.
func (t *table) legacy(state ring.State) ring.State {
	was := t.ancestor.State
	switch {
	case !t.heir:
	case state == ring.Active && was.IsTombstone():
		return ring.Joining
	case state == ring.Joining && (was == ring.Active || was == ring.Leaving):
		return was
	}
	return state
}

func (t *table) setLoad(disk, load uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := t.disk != disk || t.load != load
	t.disk, t.load = disk, load
	r := t.record(t.id)
	r.disk, r.load = disk, load
	return changed
}

// setRTT smooths the times of probes, an eighth at a time.
func (t *table) setRTT(name string, rtt time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in, ok := t.alive[name]
	if !ok {
		return
	}
	r := t.record(in.id)
	if r.rtt == 0 {
		r.rtt = rtt
	}
	r.rtt += (rtt - r.rtt) / 8
}

// sweep ages what it has watched for dt since the last sweep: members that are
// down for too long are forgotten, old tombstones dropped.
func (t *table) sweep(ctx context.Context, dt, outAfter time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	reach := t.reach()
	for _, e := range t.members.All() {
		switch r := t.record(e.ID); {
		case e.State.IsTombstone():
			t.drop(e, r)
		case r.up, !reach[e.Region]:
			r.absent = 0
		default:
			if r.absent += dt; r.absent >= outAfter {
				t.forget(ctx, e)
			}
		}
	}
	for id, d := range t.dropped {
		if time.Since(d.at) >= tombstoneAge {
			delete(t.dropped, id)
		}
	}
}

func (t *table) forget(ctx context.Context, e ring.Member) {
	e.State = ring.Forgotten
	if err := t.put(e); err == nil {
		t.log.WarnContext(ctx, "member was down for too long and is forgotten", "member", e.ID, "epoch", e.Epoch)
	}
}

// forgetByOrder forgets a member because somebody says so.
func (t *table) forgetByOrder(ctx context.Context, id string, force bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.members.Get(id)
	switch {
	case id == t.id:
		return ErrSelf
	case !ok:
		return ErrUnknown
	case e.State.IsTombstone():
		return nil
	case t.record(id).up && !force:
		return ErrUp
	}
	e.State = ring.Forgotten
	if err := t.put(e); err != nil {
		return err
	}
	t.log.WarnContext(ctx, "member is forgotten by order", "member", id, "epoch", e.Epoch)
	return nil
}

// drop ends a tombstone. Its epoch stays known for as long again, or else others
// who drop it a little later would bring it back.
func (t *table) drop(e ring.Member, r *record) {
	if e.ID == t.id || time.Since(r.gone) < tombstoneAge || !t.members.Drop(e.ID, e.Epoch) {
		return
	}
	t.dropped[e.ID] = tombstone{e.Epoch, time.Now()}
	delete(t.records, e.ID)
	t.entries.give()
}

// reach tells of which regions at least half of the nodes that are in are up.
func (t *table) reach() map[string]bool {
	in, up := make(map[string]int), make(map[string]int)
	reach := make(map[string]bool)
	for _, e := range t.members.All() {
		reach[e.Region] = true
		if e.Role != ring.Node || e.State.IsTombstone() {
			continue
		}
		in[e.Region]++
		if t.record(e.ID).up {
			up[e.Region]++
		}
	}
	for region := range in {
		reach[region] = 2*up[region] >= in[region]
	}
	return reach
}
