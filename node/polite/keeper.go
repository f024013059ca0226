package polite

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	tellLimit = 2 * time.Second // for one node
	tellMost  = 64              // nodes that are told at the same time
	askEvery  = 15 * time.Second
	firstWait = 5 * time.Second
	maxHolds  = 1024 // in a message
	maxName   = 255  // bytes of a host's name
)

// Nodes is the way to the other nodes; *peers.Set is one.
type Nodes interface {
	Conn(id string) (grpc.ClientConnInterface, error)
	Usable(id string) bool
}

// KeeperConfig says whom to tell.
type KeeperConfig struct {
	Self, Region string // of this node
	Hosts        *Hosts
	// View returns the placement as it is known now, which may be nil; Changed a channel that is closed
	// when it changes or a member comes up. See member.Membership.
	View    func() *ring.View
	Changed func() <-chan struct{}
	Nodes   Nodes
	// Seeded says that there should be others: no host is asked before one of them was, or
	// 5 s have passed.
	Seeded bool
	Logger *slog.Logger // nil = silent
}

// Keeper keeps what the nodes of a cluster know of hosts the same: a change is told to all who
// should know at once, who comes up asks and is asked, and every 15 s
// one of them is, as messages get lost.
type Keeper struct {
	cfg  KeeperConfig
	log  *slog.Logger
	met  map[string]string // the boot of each node that was asked; of Run alone
	once sync.Once
	free chan struct{} // one for each node that is being told or asked
}

// NewKeeper returns a Keeper, before Hosts are used. It does no I/O.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Seeded {
		cfg.Hosts.shut = make(chan struct{})
	}
	return &Keeper{cfg: cfg, log: cfg.Logger, met: make(map[string]string), free: make(chan struct{}, tellMost)}
}

// Run tells and asks until ctx is done.
func (k *Keeper) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	defer time.AfterFunc(firstWait, k.open).Stop()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		changed := k.cfg.Changed()
		for _, m := range k.strangers() {
			k.start(ctx, &running, m, nil)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-k.cfg.Hosts.wake:
			k.tell(ctx, &running)
		case <-tick.C:
			if others := k.others(); len(others) > 0 {
				k.start(ctx, &running, others[rand.N(len(others))], nil)
			}
		}
	}
}

// others are the nodes that can be asked.
func (k *Keeper) others() []ring.Member {
	view := k.cfg.View()
	if view == nil {
		return nil
	}
	var others []ring.Member
	for _, m := range view.Members() {
		if m.ID != k.cfg.Self && k.cfg.Nodes.Usable(m.ID) {
			others = append(others, m)
		}
	}
	return others
}

// strangers are those that were not asked since they, or we, have started.
func (k *Keeper) strangers() []ring.Member {
	var strangers []ring.Member
	for _, m := range k.others() {
		if k.met[m.ID] != m.Boot {
			k.met[m.ID] = m.Boot
			strangers = append(strangers, m)
		}
	}
	return strangers
}

// tell tells what is new to all whom it concerns.
func (k *Keeper) tell(ctx context.Context, running *sync.WaitGroup) {
	news := k.cfg.Hosts.takeNews()
	if len(news) == 0 {
		return
	}
	var ofRegion, ofAll []*ringmodv1.HostHold
	for _, hold := range news {
		p := encode(hold)
		ofRegion = append(ofRegion, p)
		if hold.State == Held {
			ofAll = append(ofAll, p)
		}
	}
	for _, m := range k.others() {
		say := ofAll
		if m.Region == k.cfg.Region {
			say = ofRegion
		}
		if len(say) > 0 {
			k.start(ctx, running, m, say[:min(len(say), maxHolds)])
		}
	}
}

// start tells a node and learns what it knows, in the background.
func (k *Keeper) start(ctx context.Context, running *sync.WaitGroup, m ring.Member, say []*ringmodv1.HostHold) {
	select {
	case k.free <- struct{}{}:
	case <-ctx.Done():
		return
	}
	running.Go(func() {
		defer func() { <-k.free }()
		if err := k.exchange(ctx, m, say); err != nil {
			k.log.DebugContext(ctx, "a node was not told of hosts that are left alone", "peer", m.ID, "err", err)
		}
	})
}

func (k *Keeper) exchange(ctx context.Context, m ring.Member, say []*ringmodv1.HostHold) error {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	conn, err := k.cfg.Nodes.Conn(m.ID)
	if err != nil {
		return err
	}
	before := time.Now() // counted from here a hold never grows by being passed on
	resp, err := ringmodv1.NewPeerServiceClient(conn).Hosts(ctx, &ringmodv1.HostsRequest{Holds: say})
	if err != nil {
		return err
	}
	k.cfg.Hosts.Learn(before, decode(resp.GetHolds(), m.Region == k.cfg.Region))
	k.open()
	return nil
}

// open lets hosts be asked.
func (k *Keeper) open() {
	k.once.Do(func() {
		if k.cfg.Hosts.shut != nil {
			close(k.cfg.Hosts.shut)
		}
	})
}

// Exchange answers another node; what it tells was told to whom it concerns.
func (k *Keeper) Exchange(_ context.Context, req *ringmodv1.HostsRequest) (*ringmodv1.HostsResponse, error) {
	k.cfg.Hosts.Learn(time.Now(), decode(req.GetHolds(), true))
	resp := &ringmodv1.HostsResponse{}
	for _, hold := range k.cfg.Hosts.Holds() {
		if len(resp.GetHolds()) < maxHolds {
			resp.Holds = append(resp.Holds, encode(hold))
		}
	}
	return resp, nil
}

var states = map[State]ringmodv1.HostState{ //nolint:gochecknoglobals // never written
	OK: ringmodv1.HostState_HOST_STATE_OK, Held: ringmodv1.HostState_HOST_STATE_HELD, Down: ringmodv1.HostState_HOST_STATE_DOWN,
}

// WireState is a state in messages.
func WireState(s State) ringmodv1.HostState { return states[s] }

func encode(hold Hold) *ringmodv1.HostHold {
	p := &ringmodv1.HostHold{Host: hold.Host, State: states[hold.State], Left: durationpb.New(hold.Left)}
	if hold.Error != nil {
		p.Error = wire.Detail(hold.Error)
	}
	return p
}

// decode leaves out what cannot be read, and what does not concern another region.
func decode(all []*ringmodv1.HostHold, sameRegion bool) []Hold {
	var holds []Hold
	for _, p := range all[:min(len(all), maxHolds)] {
		hold := Hold{Host: p.GetHost(), Left: max(p.GetLeft().AsDuration(), 0)}
		for state, is := range states {
			if is == p.GetState() {
				hold.State = state
			}
		}
		if hold.State != OK {
			hold.Error = failure(hold, p.GetError())
		}
		isName := hold.Host != "" && len(hold.Host) <= maxName && !strings.ContainsAny(hold.Host, "/ \n\t")
		if isName && (sameRegion || hold.State == Held) {
			holds = append(holds, hold)
		}
	}
	return holds
}

// failure is what who asks for such a host gets: never that something does not exist, whatever
// another node says.
func failure(hold Hold, detail *ringmodv1.ErrorDetail) *cache.Error {
	e := &cache.Error{Reason: cache.Broken, Source: hold.Host, Text: wire.Line(detail.GetText())}
	switch {
	case hold.State == Held:
		e.Reason = cache.Busy
	case detail.GetReason() == ringmodv1.Reason_REASON_UPSTREAM_SLOW:
		e.Reason = cache.Slow
	}
	return e
}

// Share is the part of a cluster's fills that falls to a node: as each region is home
// to as many partitions as any other, and a node of a region to as many as its weight says.
// It is 1 for a node that is alone or not in the view.
func Share(view *ring.View, self string) float64 {
	if view == nil {
		return 1
	}
	weights := make(map[string]int)
	var own ring.Member
	for _, m := range view.Members() {
		weights[m.Region] += m.Weight
		if m.ID == self {
			own = m
		}
	}
	if own.ID == "" {
		return 1
	}
	return float64(own.Weight) / float64(weights[own.Region]) / float64(len(weights))
}

// ShareOfGateway is what a gateway, which asks upstream when it reaches no node, takes: as a node
// more of equal weight would.
func ShareOfGateway(view *ring.View) float64 {
	if view == nil {
		return 1
	}
	return 1 / float64(len(view.Members())+1)
}
