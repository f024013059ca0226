package member

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/ringmod/ringmod/ring"
)

const (
	guardTick  = time.Second
	rivalGrace = 3 * time.Second  // within which a rival that lives has sent a claim
	claimAgain = 15 * time.Second // once it had its chance
	ageMargin  = 5 * time.Second  // ages closer than this are equal, the smaller boot id stays
	claimKind  = 1
	claimHead  = 25 // bytes before the id
)

// rival is what is known of an instance that bears the own node id.
type rival struct {
	asked  time.Time // when the last claim went out
	beaten bool      // it has shown to be younger
}

// claim is what a process says to another one with its node id.
type claim struct {
	id       string
	from, to uint64 // boot ids
	age      time.Duration
}

func (c claim) encode() []byte {
	b := []byte{claimKind}
	b = binary.BigEndian.AppendUint64(b, c.from)
	b = binary.BigEndian.AppendUint64(b, c.to)
	b = binary.BigEndian.AppendUint64(b, uint64(c.age.Milliseconds()))
	return append(b, c.id...)
}

func decodeClaim(b []byte) (claim, bool) {
	if len(b) <= claimHead || len(b) > claimHead+ring.MaxIDLen || b[0] != claimKind {
		return claim{}, false
	}
	return claim{
		id:   string(b[claimHead:]),
		from: binary.BigEndian.Uint64(b[1:]),
		to:   binary.BigEndian.Uint64(b[9:]),
		age:  time.Duration(min(binary.BigEndian.Uint64(b[17:]), 1<<43)) * time.Millisecond,
	}, true
}

// judge answers a claim: an error if this process is the one to stop.
func (t *table) judge(c claim, age time.Duration) error {
	own, err := bootNumber(t.boot)
	if err != nil || c.id != t.id || c.to != own || c.from == own {
		return nil
	}
	stays := own < c.from
	if d := age - c.age; d > ageMargin || d < -ageMargin {
		stays = d > 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	in, ok := t.alive[gossipName(t.id, bootString(c.from))]
	if !stays {
		where := "unknown address"
		if ok {
			where = in.gossip.String()
		}
		return fmt.Errorf("%w: %s at %s has run for %s: give this one another --node-id or stop that one",
			ErrDuplicate, t.id, where, c.age.Round(time.Second))
	}
	if ok && !in.rival.beaten {
		in.rival.beaten = true
		t.guard.give()
		t.log.Error("another process uses this node id and has to stop",
			"member", t.id, "gossip", in.gossip.String())
	}
	return nil
}

// rivals returns those that are due for a claim.
func (t *table) rivals(ctx context.Context) []memberlist.Node {
	t.mu.Lock()
	defer t.mu.Unlock()
	var due []memberlist.Node
	for name, in := range t.alive {
		if in.id != t.id || in.boot == t.boot {
			continue
		}
		pause := guardTick
		if time.Since(in.since) > rivalGrace {
			pause = claimAgain
		}
		if time.Since(in.rival.asked) < pause {
			continue
		}
		if in.rival.asked.IsZero() {
			t.log.Log(ctx, t.rivalLevel(), "another process with this node id seems alive",
				"member", t.id, "gossip", in.gossip.String())
		}
		in.rival.asked = time.Now()
		due = append(due, memberlist.Node{
			Name: name, Addr: net.IP(in.gossip.Addr().AsSlice()), Port: in.gossip.Port(),
		})
	}
	return due
}

// rivalLevel: a process that has just begun meets what is left of its last life.
func (t *table) rivalLevel() slog.Level {
	if time.Since(t.started) < time.Minute {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// mustRewrite tells whether the table holds something else than the own entry and
// this process should say so. A rival that is alive gets time to show itself first, so
// that two processes do not write the entry in turns.
func (t *table) mustRewrite() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	cur, ok := t.members.Get(t.id)
	switch {
	case t.own.State == ring.Left:
		return false
	case !ok:
		return true
	case cur == t.own:
		return t.met && (t.renew && t.members.Seq() > t.own.Epoch || t.legacy(t.own.State) != t.own.State)
	case cur.Boot == t.own.Boot:
		return true
	}
	in, alive := t.alive[gossipName(t.id, cur.Boot)]
	return !alive || in.rival.beaten || time.Since(in.since) >= rivalGrace
}

// guardOwn keeps the own entry standing, and others informed of it.
func (m *Membership) guardOwn(ctx context.Context, list *memberlist.Memberlist) {
	var claims sync.WaitGroup
	defer claims.Wait()
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.announce:
			m.update(ctx, list, time.Nanosecond)
			continue
		case <-m.table.guard:
		case <-tick.C:
		}
		for _, to := range m.table.rivals(ctx) {
			claims.Go(func() { m.sendClaim(ctx, list, to) })
		}
		met := m.table.hasMet()
		if m.table.mustRewrite() {
			m.rewrite(ctx)
		}
		if met { // and the state of an earlier life is the own one
			m.joined.set()
		}
	}
}

func (m *Membership) rewrite(ctx context.Context) {
	was := m.Entry().Epoch
	if err := m.write(ctx, m.table.inherit); err != nil {
		m.log.ErrorContext(ctx, "cannot write the own entry", "err", err)
		return
	}
	own := m.Entry()
	m.log.InfoContext(ctx, "wrote the own entry anew", "state", own.State.String(), "epoch", own.Epoch, "epoch_before", was)
}

// update gives memberlist the metadata of now. Waiting longer than a moment is of
// use only to those who stop afterwards.
func (m *Membership) update(ctx context.Context, list *memberlist.Memberlist, wait time.Duration) {
	m.updating.lock()
	defer m.updating.unlock()
	if err := list.UpdateNode(wait); err != nil && wait > time.Nanosecond {
		m.log.WarnContext(ctx, "nobody may have heard of the own entry", "err", err)
	}
}

// sendClaim sends over packets and a stream: either may be cut.
func (m *Membership) sendClaim(ctx context.Context, list *memberlist.Memberlist, to memberlist.Node) {
	own, err := bootNumber(m.table.boot)
	if err != nil {
		return
	}
	_, boot, _ := cutName(to.Name)
	theirs, err := bootNumber(boot)
	if err != nil {
		return
	}
	msg := claim{m.table.id, own, theirs, time.Since(m.started)}.encode()
	m.log.DebugContext(ctx, "claiming the node id", "gossip", to.Address())
	_ = list.SendBestEffort(&to, msg) // repeated while both are alive
	_ = list.SendReliable(&to, msg)
}
