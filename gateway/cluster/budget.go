package cluster

import "sync"

// Shares of the requests that may ask more than they need to, and how much may be
// saved up for bad moments, in calls (cluster.md 4.12).
const (
	retryShare, retrySaved = 0.10, 50
	hedgeShare, hedgeSaved = 0.05, 20
)

// budget keeps those who are busy from being asked all the more. Each request
// earns a share of a call. Asking somebody else after a node was busy, and
// hedging, must be paid for. Asking somebody else after a node was dead costs as
// much but is never denied: candidates are few, and breakers take the dead ones
// away.
type budget struct {
	mu      sync.Mutex
	retries float64
	hedges  float64
}

func newBudget() *budget { return &budget{retries: retrySaved, hedges: hedgeSaved} }

// earn counts a request.
func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retries = min(b.retries+retryShare, retrySaved)
	b.hedges = min(b.hedges+hedgeShare, hedgeSaved)
}

// hedge takes what a hedge costs and reports whether it was there.
func (b *budget) hedge() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hedges < 1 || b.retries < 1 {
		return false
	}
	b.hedges--
	b.retries--
	return true
}

// retry takes what a retry costs and reports whether it was there.
func (b *budget) retry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retries < 1 {
		return false
	}
	b.retries--
	return true
}

// spend takes what a retry costs, if it is there.
func (b *budget) spend() { _ = b.retry() }
