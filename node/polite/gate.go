package polite

import (
	"container/list"
	"context"
	"sync"
)

// gate lets so many in at once; how many may change at any time. Who is large takes at
// most three quarters of the places, so that what is small never waits for large ones alone.
type gate struct {
	mu    sync.Mutex
	in    int
	large int          // of those
	queue [2]list.List // of chan struct{}: small, large; closed when its turn has come
}

// places returns how many may be in, and how many of them large.
func places(limit int) (all, large int) { return limit, max(limit*3/4, 1) }

// enter waits for a place.
func (g *gate) enter(ctx context.Context, isLarge bool, limit int) error {
	g.mu.Lock()
	q := &g.queue[index(isLarge)]
	if q.Len() == 0 && g.admits(isLarge, limit) {
		g.add(isLarge, 1)
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	place := q.PushBack(turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-turn: // at the same time: it is somebody else's now
		g.add(isLarge, -1)
		g.admit(limit)
	default:
		q.Remove(place)
	}
	return ctx.Err()
}

// leave gives a place back.
func (g *gate) leave(isLarge bool, limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.add(isLarge, -1)
	g.admit(limit)
}

// admit lets in who can be. The lock is held.
func (g *gate) admit(limit int) {
	for _, isLarge := range []bool{false, true} {
		q := &g.queue[index(isLarge)]
		for q.Len() > 0 && g.admits(isLarge, limit) {
			g.add(isLarge, 1)
			if turn, ok := q.Remove(q.Front()).(chan struct{}); ok { // nothing else is in there
				close(turn)
			}
		}
	}
}

func (g *gate) admits(isLarge bool, limit int) bool {
	all, large := places(limit)
	return g.in < all && (!isLarge || g.large < large)
}

func (g *gate) add(isLarge bool, n int) {
	g.in += n
	if isLarge {
		g.large += n
	}
}

// idle tells whether nobody is in or waits.
func (g *gate) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in == 0 && g.queue[0].Len() == 0 && g.queue[1].Len() == 0
}

func index(isLarge bool) int {
	if isLarge {
		return 1
	}
	return 0
}
