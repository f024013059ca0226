package peers

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/wire"
)

// lanePause is how long after a lane has broken there is none.
const lanePause = time.Second

// lanes keeps at most one wire.Lane open over a link.
type lanes struct {
	mu      sync.RWMutex
	open    *wire.Lane
	pause   time.Time // until then none is opened
	unknown bool      // the peer has none
}

// lane returns the lane over l, nil while there is none. It opens one when l
// stands; s.lanes ends when l is closed.
func (s *Set) lane(l *link, id string) *wire.Lane {
	l.lanes.mu.RLock()
	open := l.lanes.open
	l.lanes.mu.RUnlock()
	if open != nil && !open.Closed() {
		return open
	}
	if !l.ready() {
		return nil
	}
	return s.openLane(l, id)
}

func (s *Set) openLane(l *link, id string) *wire.Lane {
	l.lanes.mu.Lock()
	defer l.lanes.mu.Unlock()
	if l.lanes.open != nil && !l.lanes.open.Closed() {
		return l.lanes.open
	}
	if l.lanes.unknown || time.Now().Before(l.lanes.pause) {
		return nil
	}
	lane := wire.NewLane(id)
	if !s.begin(func() { l.lanes.ended(lane.Run(context.Background(), l.ClientConn)) }) { // it ends with l
		return nil
	}
	l.lanes.open = lane
	return lane
}

// ended notes why a lane has ended.
func (l *lanes) ended(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause = time.Now().Add(lanePause)
	l.unknown = l.unknown || status.Code(err) == codes.Unimplemented
}

// begin runs work that Run waits for, unless Run is over.
func (s *Set) begin(work func()) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.closed {
		s.running.Go(work)
	}
	return !s.closed
}
