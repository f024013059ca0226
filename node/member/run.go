package member

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/ringmod/ringmod/ring"
)

const (
	sweepEvery  = 5 * time.Second
	saveEvery   = 10 * time.Second // looks whether other members live than were saved last; a node may be killed and move soon after its start
	goodbyeTime = time.Second      // for telling the others that this process goes down
	leaveTime   = 5 * time.Second  // for telling them that it leaves for good
	leavePause  = 2 * time.Second  // afterwards, for the probes under way
)

// Run is in the cluster until ctx is done: then it tells the others that it is
// down, closes the transport and returns nil. It stays in; see Leave. An error says
// why it could not begin, or matches ErrDuplicate. Call it once.
func (m *Membership) Run(ctx context.Context) error {
	saved := m.load(ctx)
	m.rejoin.remember(saved.Seeds)
	m.table.observe(saved.Epoch)
	err := m.write(ctx, func(e *ring.Member) { e.State = m.resume(saved) })
	if err == nil {
		err = m.views.build()
	}
	if err != nil {
		return errors.Join(err, m.cfg.Transport.Shutdown())
	}
	if len(m.cfg.Seeds) == 0 && (m.Entry().State == ring.Active || len(saved.Seeds) == 0) {
		m.joined.set()
	}
	list, err := memberlist.Create(m.gossipConfig())
	if err != nil {
		return errors.Join(fmt.Errorf("starting gossip: %w", err), m.cfg.Transport.Shutdown())
	}
	m.list.Store(list)

	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var loops sync.WaitGroup
	loops.Go(func() { m.views.run(running) })
	loops.Go(func() { m.guardOwn(running, list) })
	loops.Go(func() { m.housekeep(running) })
	loops.Go(func() {
		m.rejoin.run(running, func(addr string) error {
			_, err := list.Join([]string{addr})
			return err
		})
	})
	select {
	case <-ctx.Done():
	case err = <-m.fatal:
	}
	cancel()
	m.stopped.set()
	m.goDown(list)
	loops.Wait()
	return err
}

func (m *Membership) load(ctx context.Context) Saved {
	m.writing.Lock()
	defer m.writing.Unlock()
	return m.keeper.load(ctx)
}

// resume returns the state to begin in.
func (m *Membership) resume(saved Saved) ring.State {
	switch {
	case m.cfg.Entry.State != ring.Joining:
		return m.cfg.Entry.State
	case saved.State == 0 && saved.Epoch > 0: // of a version without states
		return ring.Active
	case saved.State == 0 && len(m.cfg.Seeds) == 0:
		return ring.Active
	case saved.State == 0 || saved.State.IsTombstone():
		return ring.Joining
	default:
		return saved.State
	}
}

// goDown says goodbye, so that nobody needs to find out, and shuts gossip down.
func (m *Membership) goDown(list *memberlist.Memberlist) {
	m.leaving.lock()
	defer m.leaving.unlock()
	m.down = true
	if err := list.Leave(goodbyeTime); err != nil {
		m.log.Debug("nobody may have heard the goodbye", "err", err)
	}
	if err := list.Shutdown(); err != nil {
		m.log.Warn("cannot shut gossip down", "err", err)
	}
}

// Leave takes this member out of the cluster for good: its entry becomes Left, the
// others are told, and the probes under way are answered for 2 s more. Run goes on
// until its context is done. Moving the data away comes before.
func (m *Membership) Leave(ctx context.Context) error {
	if err := m.SetState(ctx, ring.Left); err != nil {
		return err
	}
	list := m.list.Load()
	if list == nil {
		return nil
	}
	if err := m.tellLeft(ctx, list); err != nil {
		return fmt.Errorf("leaving, nobody may have heard: %w", err)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(leavePause):
		return nil
	}
}

func (m *Membership) tellLeft(ctx context.Context, list *memberlist.Memberlist) error {
	m.update(ctx, list, leaveTime)
	m.leaving.lock()
	defer m.leaving.unlock()
	if m.down {
		return nil
	}
	return list.Leave(leaveTime)
}

// housekeep does what time alone demands.
func (m *Membership) housekeep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	last, saved := time.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A process that was stopped has not watched anybody meanwhile.
		dt := min(time.Since(last), 2*sweepEvery)
		last = time.Now()
		m.table.sweep(ctx, dt, m.cfg.OutAfter)
		if m.keys != nil {
			m.keys.refresh(ctx)
		}
		if time.Since(saved) >= saveEvery {
			saved = time.Now()
			m.remember(ctx)
		}
	}
}

func (m *Membership) remember(ctx context.Context) {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.keeper.remember(ctx, m.table.living())
}

// gossipConfig returns what research has measured: a dead member is noticed in 9 to
// 12 s, and 300 ms of round trip with a fifth of the packets lost is no death.
func (m *Membership) gossipConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = gossipName(m.table.id, m.table.boot)
	c.Label = m.cfg.Cluster
	c.Transport = m.cfg.Transport
	c.AdvertiseAddr = m.advertise.Addr().String()
	c.AdvertisePort = int(m.advertise.Port())
	c.BindAddr, c.BindPort = c.AdvertiseAddr, c.AdvertisePort
	c.ProbeInterval, c.ProbeTimeout = 1500*time.Millisecond, 800*time.Millisecond
	c.SuspicionMult = 4
	c.RetransmitMult = 8 // with 4, 7 of 40 starts of 8 members needed a full exchange for all to see all; with 6 none
	c.PushPullInterval = 15 * time.Second
	c.GossipToTheDeadTime = time.Minute
	c.TCPTimeout = 5 * time.Second
	if m.keys != nil {
		c.Keyring = m.keys.ring
	}
	d := delegate{m}
	c.Delegate, c.Events, c.Alive, c.Ping = d, d, d, d
	c.LogOutput = newLogWriter(m.log)
	return c
}
