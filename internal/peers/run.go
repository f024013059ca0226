package peers

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/wire"
)

const (
	sweepEvery = time.Second
	// suspicion is how long a peer may be silent before it is asked how it is.
	suspicion = wire.Silence / 2
	// unasked is how long it has to answer before its silence is no chance.
	unasked = time.Second

	// A probe of a peer that is stopped waits at its door, and so is answered in
	// the moment in which the peer goes on.
	probeLimit = maxPause
)

// Run looks after the peers until ctx is done, then closes all connections, which
// breaks the calls that are left, and returns nil. Get and Conn work before Run,
// and no longer after it.
func (s *Set) Run(ctx context.Context) error {
	var watchers sync.WaitGroup
	defer s.shut()
	defer watchers.Wait()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
			s.watchAll(ctx, &watchers, inDoubt)
		case <-tick.C:
			s.sweep()
			s.watchAll(ctx, &watchers, inDoubt)
		}
	}
}

func inDoubt(p *peer) bool { return p.doubtful.Load() || p.breaker.isOpen() }

// shut closes everything for good.
func (s *Set) shut() {
	s.mu.Lock()
	s.closed = true
	for _, p := range s.peers {
		s.retire(p)
	}
	all := s.retired
	s.retired = nil
	s.mu.Unlock()
	for _, p := range all {
		p.close()
	}
	s.running.Wait()
}

// sweep retires those whom the view no longer has as they were, and closes those
// that are retired and idle.
func (s *Set) sweep() {
	s.mu.RLock()
	ids := make([]string, 0, len(s.peers))
	for id := range s.peers {
		ids = append(ids, id)
	}
	s.mu.RUnlock()
	for _, id := range ids {
		if s.current(id) == nil {
			s.forget(id)
		}
	}
	s.mu.Lock()
	var idle []*peer
	s.retired = slices.DeleteFunc(s.retired, func(p *peer) bool {
		if p.idle() {
			idle = append(idle, p)
			return true
		}
		return false
	})
	s.mu.Unlock()
	for _, p := range idle {
		p.close()
	}
}

// forget retires the peer of that id.
func (s *Set) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[id]; p != nil {
		s.retire(p)
	}
}

// watchAll sees to it that those peers are watched.
func (s *Set) watchAll(ctx context.Context, watchers *sync.WaitGroup, which func(*peer) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if p.stopWatch != nil || !which(p) {
			continue
		}
		watching, stop := context.WithCancel(ctx)
		p.stopWatch = stop
		watchers.Go(func() {
			s.watch(watching, p)
			stop()
			s.mu.Lock()
			p.stopWatch = nil
			s.mu.Unlock()
		})
	}
}

// watch asks a peer for its health: once where there is doubt, until it answers
// where the breaker is open.
func (s *Set) watch(ctx context.Context, p *peer) {
	if !p.breaker.isOpen() && !p.inquire(ctx) {
		return
	}
	wait := p.breaker.wait()
	for sleep(ctx, wait) && p.breaker.isOpen() {
		start := time.Now()
		if p.healthy(ctx, probeLimit) == nil {
			if p.breaker.answered() {
				p.closed()
			}
			return
		}
		wait = p.breaker.wait() - time.Since(start)
	}
}

// inquire clears a doubt, and tells whether that opened the breaker. Silence does; an
// error is as good as that of a call.
func (p *peer) inquire(ctx context.Context) bool {
	p.doubtful.Store(false)
	epoch := p.breaker.now()
	p.asked.Store(time.Now().UnixNano())
	err := p.healthy(ctx, wire.Silence)
	p.asked.Store(0)
	if err == nil || ctx.Err() != nil {
		return false
	}
	var bad bool
	if status.Code(err) == codes.DeadlineExceeded {
		bad = p.breaker.trip()
	} else {
		bad = p.breaker.failure(epoch, false)
	}
	if bad {
		p.opened(err)
	}
	return bad
}

// sleep waits, and tells whether ctx lasts.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// healthy asks the peer how it is. A server without a health service is well
// enough.
func (p *peer) healthy(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := health.NewHealthClient(pick(&p.links)).Check(ctx, &health.HealthCheckRequest{}, grpc.WaitForReady(true))
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil
	case err != nil:
		return err
	case r.GetStatus() != health.HealthCheckResponse_SERVING:
		return fmt.Errorf("its health is %v", r.GetStatus())
	}
	return nil
}

// opened tells that the breaker has opened.
func (p *peer) opened(err error) {
	p.set.log.Warn("peer does not answer, others are asked", "peer", p.id, "err", err)
	p.set.look()
}

// look makes Run look.
func (s *Set) look() {
	select {
	case s.wake <- struct{}{}:
	default: // Run will look anyway
	}
}

// suspect lets Run ask the peer how it is, now.
func (p *peer) suspect() {
	p.doubtful.Store(true)
	p.set.look()
}

// silent notes that a call has ended in silence. If a question for its health has not
// been answered either, that is the peer's doing.
func (p *peer) silent(err error) {
	since := p.asked.Load()
	if since > 0 && time.Now().UnixNano()-since >= int64(unasked) && p.breaker.trip() {
		p.opened(err)
	}
}

// closed tells that the breaker is no longer open.
func (p *peer) closed() {
	p.set.log.Info("peer answers again", "peer", p.id)
}
