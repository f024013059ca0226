package node_test

import (
	"sync"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
)

// heldStore stops a fill between the removal of its file and its end.
type heldStore struct {
	*store.Mem

	aborted chan struct{} // closed when the file is gone
	tried   chan struct{} // closed when somebody tried to open it then
	resume  chan struct{}
}

type heldPending struct {
	store.Pending

	s    *heldStore
	gone sync.Once
	open sync.Once
}

func (s *heldStore) Create(name string) (store.Pending, error) {
	p, err := s.Mem.Create(name)
	return &heldPending{Pending: p, s: s}, err
}

func (p *heldPending) Abort() {
	p.Pending.Abort()
	p.gone.Do(func() {
		close(p.s.aborted)
		<-p.s.resume
	})
}

func (p *heldPending) Open() (store.File, error) {
	select {
	case <-p.s.aborted:
		p.open.Do(func() { close(p.s.tried) })
	default:
	}
	return p.Pending.Open()
}

// TestJoiningAFailingFill has a caller join in the moment in which the file of
// a failed fill is gone already: it is told why the fill failed.
func TestJoiningAFailingFill(t *testing.T) {
	t.Parallel()
	mem := &heldStore{store.NewMem(), make(chan struct{}), make(chan struct{}), make(chan struct{})}
	zip := fileOf(t, modPath, modVers, target.Zip)
	n := node.New(node.Config{Store: mem, Documents: mem, Upstream: newScripted(map[string]string{zip.String(): "no zip"})})
	t.Cleanup(func() { stopNode(n) })
	var callers sync.WaitGroup
	ask := func(whole bool) {
		if _, _, err := read(t.Context(), n, cache.Request{Target: zip, Whole: whole}); cache.ReasonOf(err) != cache.Broken {
			t.Errorf("got %v, want that upstream's zip is bad", err)
		}
	}
	callers.Go(func() { ask(true) }) // never opens the file
	<-mem.aborted
	callers.Go(func() { ask(false) })
	<-mem.tried
	close(mem.resume)
	callers.Wait()
}
