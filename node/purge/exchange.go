package purge

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	patience      = 5 * time.Second // with others at start, and with one that is told of a purge
	exchangeLimit = 10 * time.Second
	exchangeEvery = time.Minute // ± a quarter
	exchangeAgain = 5 * time.Second
	lookEvery     = 15 * time.Second // for members that can be asked again, unless that is told
	atOnce        = 8                // exchanges
	tidyEvery     = time.Minute
	saveEvery     = time.Hour // when another node was heard of last

	// What others have forgotten and we too, at about this distance, is the same purge.
	sameTime = time.Hour
	// After a time without others, it is this long until all of them were asked.
	returning = time.Hour
	absent    = 24 * time.Hour
)

// Run exchanges purges with the other nodes, and lets the node serve once it has with one,
// until ctx is done.
func (k *Keeper) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { k.admit(ctx) })
	running.Go(func() { k.tidy(ctx) })
	free := make(chan struct{}, atOnce)
	for {
		changed := k.cfg.Changed()
		ids, wait := k.due()
		for _, id := range ids {
			free <- struct{}{}
			running.Go(func() {
				defer func() { <-free }()
				k.visited(id, k.exchange(ctx, id))
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// admit lets the node serve when it has waited long enough for others.
func (k *Keeper) admit(ctx context.Context) {
	k.mu.Lock()
	alone := k.away.heard.IsZero() && !k.cfg.Seeded
	k.mu.Unlock()
	if alone {
		k.ready.open()
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-k.ready.ch:
	case <-ctx.Done():
	case <-timer.C:
		k.log.WarnContext(ctx, "no other node could be asked what was purged meanwhile, serving what is here", "duration_ms", patience.Milliseconds())
		k.ready.open()
	}
}

// tidy forgets what is too old, and tries again what has not succeeded.
func (k *Keeper) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		if k.cfg.Set.expire() || k.isStale() {
			k.dirty()
		}
		_ = k.settle(ctx) // it logs what fails
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-k.wake:
		}
	}
	k.dirty()
	_ = k.settle(context.WithoutCancel(ctx))
}

// isStale tells whether the time on the disk at which another node was heard of is old.
func (k *Keeper) isStale() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.away.heard.Sub(k.away.kept) >= saveEvery
}

// peer is what is known of another node.
type peer struct {
	boot string
	busy bool
	due  time.Time
}

// due returns the nodes to ask now, and how long it is until others are to be asked.
func (k *Keeper) due() (ids []string, wait time.Duration) {
	wait = lookEvery
	view := k.cfg.View()
	if view == nil {
		return nil, wait
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.others(view) {
		p := k.peers[m.ID]
		switch {
		case !k.cfg.Nodes.Usable(m.ID):
			if p != nil && !p.busy {
				delete(k.peers, m.ID) // asked at once when it is back
			}
			continue
		case p == nil || p.boot != m.Boot:
			p = &peer{boot: m.Boot}
			k.peers[m.ID] = p
		}
		switch left := time.Until(p.due); {
		case p.busy:
			wait = min(wait, exchangeAgain)
		case left <= 0:
			p.busy = true
			ids = append(ids, m.ID)
		default:
			wait = min(wait, left)
		}
	}
	return ids, wait
}

// others are the nodes that are in.
func (k *Keeper) others(view *ring.View) []ring.Member {
	var all []ring.Member
	for _, m := range view.Members() {
		if m.ID != k.cfg.Self {
			all = append(all, m)
		}
	}
	return all
}

// visited notes how an exchange went.
func (k *Keeper) visited(id string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.peers[id]
	if p == nil {
		return
	}
	p.busy = false
	pause := exchangeEvery*3/4 + rand.N(exchangeEvery/2)
	if err != nil {
		pause = exchangeAgain
	}
	p.due = time.Now().Add(pause)
}

// exchange learns what another node knows.
func (k *Keeper) exchange(ctx context.Context, id string) error {
	all, forgotten, err := k.ask(ctx, id, nil)
	if err != nil {
		k.log.DebugContext(ctx, "a node was not asked for purges", "peer", id, "err", err)
		return err
	}
	if err := k.beginAnew(ctx, id, forgotten); err != nil {
		return err
	}
	err = k.apply(ctx, all)
	k.cfg.Set.forget(forgotten)
	k.mu.Lock()
	k.away.hear(time.Now())
	k.mu.Unlock()
	k.ready.open()
	return err
}

// ask tells another node of purges and returns those that it knows, if they are not the
// same as ours, and when the latest one was made that it has forgotten.
func (k *Keeper) ask(ctx context.Context, id string, tell []Tombstone) (all []Tombstone, forgotten time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeLimit)
	defer cancel()
	conn, err := k.cfg.Nodes.Conn(id)
	if err != nil {
		return nil, forgotten, err
	}
	req := &ringmodv1.TombstonesRequest{Digest: k.cfg.Set.Digest()}
	for _, t := range tell {
		req.Tombstones = append(req.Tombstones, Encode(t))
	}
	stream, err := ringmodv1.NewPeerServiceClient(conn).Tombstones(ctx, req)
	if err != nil {
		return nil, forgotten, err
	}
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, forgotten, nil
		}
		if err != nil {
			return nil, forgotten, err
		}
		if age := page.GetForgottenAge(); age != nil {
			forgotten = time.Now().Add(-max(0, age.AsDuration()))
		}
		all = k.decode(ctx, id, all, page.GetTombstones())
		if len(all) > MaxTombstones {
			return nil, forgotten, ErrFull
		}
	}
}

// decode adds what can be read.
func (k *Keeper) decode(ctx context.Context, id string, all []Tombstone, page []*ringmodv1.Tombstone) []Tombstone {
	for _, p := range page {
		t, err := Decode(p)
		if err != nil {
			k.log.WarnContext(ctx, "a purge of another node is left out", "peer", id, "err", err)
			continue
		}
		all = append(all, t)
	}
	return all
}

// absence is when this node was without others.
type absence struct {
	heard time.Time // when another node was heard of last; zero: never
	kept  time.Time // that on the disk
	left  time.Time // heard, when the last absence began
	back  time.Time // when it ended; zero: there was none
}

// hear notes that another node was heard of.
func (a *absence) hear(now time.Time) {
	if now.Sub(a.heard) > absent {
		a.left, a.back = a.heard, now
	}
	a.heard = now
}

// since is since when purges may have been missed that others have made.
func (a *absence) since() time.Time {
	if time.Since(a.heard) <= absent && time.Since(a.back) < returning {
		return a.left
	}
	return a.heard
}

// beginAnew removes everything where another node has forgotten a purge of a time at which
// this node was not there.
func (k *Keeper) beginAnew(ctx context.Context, id string, forgotten time.Time) error {
	k.mu.Lock()
	since := k.away.since()
	k.mu.Unlock()
	if forgotten.IsZero() || !forgotten.After(since) || k.cfg.Set.forgot(forgotten) {
		return nil
	}
	g := newGate()
	k.anew.Store(g) // nothing is served meanwhile
	defer g.open()
	gone, err := k.cfg.Disk.Purge(ctx, "", func(name string) bool { return !strings.HasPrefix(name, "sumdb/") })
	if err != nil {
		k.log.ErrorContext(ctx, "objects are not removed that may have been purged while this node was away", "peer", id, "err", err)
		return err
	}
	if gone.Objects > 0 {
		k.log.WarnContext(ctx, "everything was removed: this node was away for more than 30 days, others have forgotten purges since, and any object may have been one of them",
			"peer", id, "objects", gone.Objects, "bytes", gone.Bytes)
	}
	return nil
}

// forget notes when the latest purge was made that others have forgotten.
func (s *Set) forget(made time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if made.After(s.forgotten) {
		s.forgotten = made
	}
}

// forgot tells whether that purge was known here, too.
func (s *Set) forgot(made time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgotten.Sub(made).Abs() < sameTime
}

// lastForgotten returns when the latest purge was made that is not kept any more.
func (s *Set) lastForgotten() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgotten
}
