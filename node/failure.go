package node

import (
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// maxFailures is how many failures of one sort are kept for those who ask why a
// build has failed: an hour of trouble, in less than 2 MiB.
const maxFailures = 4096

// failures are the last ones of each target. Absence has room of its own: go get
// probes so many names that it would displace what matters.
type failures struct {
	mu       sync.Mutex
	trouble  recent
	absences recent
}

// recent is a bounded map that forgets the older half of its entries at once.
type recent struct{ young, old map[string]failure }

type failure struct {
	detail *ringmodv1.ErrorDetail
	at     time.Time
}

func (r *recent) put(name string, f failure) {
	if len(r.young) >= maxFailures/2 {
		r.young, r.old = nil, r.young
	}
	if r.young == nil {
		r.young = make(map[string]failure)
	}
	r.young[name] = f
}

func (r *recent) get(name string) failure {
	if f, ok := r.young[name]; ok {
		return f
	}
	return r.old[name]
}

// put keeps err, which may be nil.
func (fs *failures) put(name string, err error) {
	if err == nil {
		return
	}
	e, ok := errors.AsType[*cache.Error](err)
	if !ok {
		e = &cache.Error{Reason: cache.Internal, Err: err}
	}
	f := failure{wire.Detail(e), time.Now()}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if e.Reason.Absent() {
		fs.absences.put(name, f)
	} else {
		fs.trouble.put(name, f)
	}
}

// last returns the latest failure of name and its age; nil where there is none.
func (fs *failures) last(name string) (*ringmodv1.ErrorDetail, *durationpb.Duration) {
	fs.mu.Lock()
	f, absence := fs.trouble.get(name), fs.absences.get(name)
	fs.mu.Unlock()
	if absence.at.After(f.at) {
		f = absence
	}
	if f.detail == nil {
		return nil, nil
	}
	age := ageOf(f.at)
	detail := proto.CloneOf(f.detail)
	if after := detail.GetRetryAfter(); after != nil {
		detail.RetryAfter = durationpb.New(max(0, after.AsDuration()-age))
	}
	return detail, durationpb.New(age)
}

// recall adds to a holding what is remembered of its target.
func (n *Node) recall(h *ringmodv1.Holding) {
	h.Negative = n.absent.describe(h.GetTarget())
	h.LastError, h.LastErrorAge = n.failures.last(h.GetTarget())
}

// describe returns the remembered answer for name, nil where there is none.
func (ns *negatives) describe(name string) *ringmodv1.Negative {
	ns.mu.Lock()
	e, ok := ns.entries[name]
	ns.mu.Unlock()
	left := time.Until(e.expires)
	if !ok || left <= 0 {
		return nil
	}
	return &ringmodv1.Negative{
		Error: wire.Detail(e.err),
		Age:   durationpb.New(max(0, ttlOf(e.err)-left)),
		Ttl:   durationpb.New(left),
	}
}

// Fills returns how many fills run or wait for their turn.
func (n *Node) Fills() int {
	n.flights.mu.Lock()
	defer n.flights.mu.Unlock()
	return len(n.flights.running)
}
