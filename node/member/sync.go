package member

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

const (
	syncPause    = time.Second // between two fetches from one member
	syncPauseMax = time.Minute // while it goes on to differ in the same way
	syncLimit    = 5 * time.Second
	syncsAtOnce  = 8
)

// Table is what a Syncer keeps up to date; *Membership and *Follower are ones.
type Table interface {
	View() *ring.View
	// Merge takes in what another member knows.
	Merge(v *ringmodv1.View) error
}

// Syncer fetches the tables of members that are ahead. Gossip would bring them, too,
// but a request that was answered from another view is worth a look at once.
type Syncer struct {
	table Table
	conn  func(id string) (grpc.ClientConnInterface, error)
	log   *slog.Logger
	limit limiter
	wake  signal

	mu     sync.Mutex // guards what follows
	others map[string]*other
	busy   int // of them
}

// other is a member that has answered from another view.
type other struct {
	digest  uint64
	wanted  bool // its table is to be fetched
	busy    bool // it is being fetched
	fetches int  // of the table with this digest
	due     time.Time
}

// NewSyncer returns one that reaches members by conn.
func NewSyncer(table Table, conn func(id string) (grpc.ClientConnInterface, error), log *slog.Logger) *Syncer {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Syncer{table: table, conn: conn, log: log, wake: newSignal(), others: make(map[string]*other)}
}

// Observe takes the digest and the sequence number of a member's view. It never
// waits for anything.
func (s *Syncer) Observe(id string, digest, seq uint64) {
	if own := s.table.View(); seq == 0 || digest == own.Digest() || seq < own.Seq() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, known := s.others[id]
	switch {
	case known && o.digest == digest && o.wanted:
		return
	case !known && len(s.others) >= maxEntries:
		return
	case !known:
		o = &other{}
		s.others[id] = o
	}
	if o.digest != digest {
		o.digest, o.fetches = digest, 0
	}
	o.wanted = true
	s.wake.give()
}

// Run fetches until ctx is done.
func (s *Syncer) Run(ctx context.Context) error {
	var fetches sync.WaitGroup
	defer fetches.Wait()
	for ctx.Err() == nil {
		ids, wait := s.next()
		for _, id := range ids {
			fetches.Go(func() {
				s.fetch(ctx, id)
				s.done(id)
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// next takes those that are due, and returns how long it is until others are.
func (s *Syncer) next() (ids []string, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	own, wait := s.table.View().Digest(), syncPauseMax
	for id, o := range s.others {
		left := time.Until(o.due)
		switch {
		case o.busy:
		case o.wanted && o.digest == own:
			o.wanted = false
		case !o.wanted && left <= -syncPauseMax:
			delete(s.others, id)
		case o.wanted && left > 0:
			wait = min(wait, left)
		case o.wanted && s.busy < syncsAtOnce:
			s.busy++
			o.busy, o.wanted = true, false
			o.due = time.Now().Add(min(syncPause<<min(o.fetches, 10), syncPauseMax))
			o.fetches++
			ids = append(ids, id)
		}
	}
	return ids, wait
}

func (s *Syncer) done(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.others[id].busy = false
	s.busy--
	s.wake.give()
}

// fetch merges the table of a member. A member that cannot be asked is nobody's news
// here.
func (s *Syncer) fetch(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	conn, err := s.conn(id)
	if err != nil {
		s.log.DebugContext(ctx, "cannot fetch a view", "member", id, "err", err)
		return
	}
	own := s.table.View()
	resp, err := ringmodv1.NewClusterServiceClient(conn).GetView(ctx,
		&ringmodv1.GetViewRequest{ViewDigest: own.Digest(), ViewSeq: own.Seq()})
	if err != nil || resp.GetView() == nil {
		s.log.DebugContext(ctx, "fetched no view", "member", id, "err", err)
		return
	}
	if err := s.table.Merge(resp.GetView()); err != nil {
		if _, ok := s.limit.takeNews(err.Error()); ok {
			s.log.WarnContext(ctx, refusedTable, "member", id, "err", err)
		}
	}
}
