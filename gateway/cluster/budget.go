package cluster

import "sync"

// What each request earns, in hundredths of a call, and how many calls may be
// saved up for bad moments (cluster.md 4.12).
const (
	retryShare, retrySaved = 10, 50
	hedgeShare, hedgeSaved = 5, 20

	oneCall = 100
)

// budget keeps those who are busy from being asked all the more. Each request
// earns a share of a call. Asking somebody else after a node was busy, and
// hedging, must be paid for. Asking somebody else after a node was dead costs as
// much but is never denied: candidates are few, and breakers take the dead ones
// away.
type budget struct {
	mu      sync.Mutex
	retries int
	hedges  int
}

func newBudget() *budget { return &budget{retries: retrySaved * oneCall, hedges: hedgeSaved * oneCall} }

// earn counts a request.
func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retries = min(b.retries+retryShare, retrySaved*oneCall)
	b.hedges = min(b.hedges+hedgeShare, hedgeSaved*oneCall)
}

// hedge takes what a hedge costs and reports whether it was there.
func (b *budget) hedge() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hedges < oneCall || b.retries < oneCall {
		return false
	}
	b.hedges -= oneCall
	b.retries -= oneCall
	return true
}

// retry takes what a retry costs and reports whether it was there.
func (b *budget) retry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.retries < oneCall {
		return false
	}
	b.retries -= oneCall
	return true
}

// spend takes what a retry costs, or what there is of it.
func (b *budget) spend() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.retries = max(0, b.retries-oneCall)
}
