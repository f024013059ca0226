package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	// laneQueue is how many requests may wait to be sent; more go by Get.
	laneQueue = 256
	// lanePatience is how long an answer may take before Get is asked, whose signs of
	// life tell a slow node from a dead one; laneRest how long nobody is asked after
	// that.
	lanePatience = 100 * time.Millisecond
	laneRest     = time.Second
)

// Lane asks one node for small objects that never change and that it has on its
// disk, all of them over one stream: a call of Get costs several times as much.
// Whatever a Lane cannot answer is for Get. Its methods may be called at any time
// from any goroutine.
type Lane struct {
	node string
	out  chan *ringmodv1.GetSmallRequest
	done chan struct{} // closed when Run has returned

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan<- *ringmodv1.Header
	closing bool      // no more requests
	rests   time.Time // until then the node is not asked
}

// NewLane returns a Lane to the node of that name; Run opens it.
func NewLane(node string) *Lane {
	return &Lane{
		node: node, out: make(chan *ringmodv1.GetSmallRequest, laneQueue), done: make(chan struct{}),
		waiting: make(map[uint64]chan<- *ringmodv1.Header),
	}
}

// SuitsLane tells whether a Lane may answer what is asked.
func SuitsLane(req cache.Request, o Options) bool {
	k := req.Target.Kind
	return k.Immutable() && k != target.Zip && (req.Mode == cache.OnlyIfCached || req.Mode == cache.AllowFill) &&
		o.Resume == nil && o.MaxInline == 0
}

// Run keeps the stream over cc, until it ends or ctx is done, and returns why. A
// Lane is run once.
func (l *Lane) Run(ctx context.Context, cc grpc.ClientConnInterface) error {
	ctx, cancel := context.WithCancel(ctx)
	var sending sync.WaitGroup
	defer close(l.done)
	defer sending.Wait()
	defer cancel()
	defer l.close()
	stream, err := ringmodv1.NewCacheServiceClient(cc).GetSmall(ctx)
	if err != nil {
		return err
	}
	sending.Go(func() { l.send(ctx, stream) })
	for {
		resp, err := stream.Recv()
		switch {
		case err != nil:
			return err
		case resp.GetId() == 0:
			l.close()
		default:
			l.settle(resp.GetId(), resp.GetHeader())
		}
	}
}

// send sends what is asked, until l is closed.
func (l *Lane) send(ctx context.Context, stream grpc.ClientStream) {
	for {
		select {
		case <-ctx.Done():
			return
		case req, more := <-l.out:
			if !more {
				_ = stream.CloseSend() // it never fails
				return
			}
			if stream.SendMsg(req) != nil { // Recv says why
				return
			}
		}
	}
}

// close takes no more requests. Those that wait are still answered, if the stream
// lasts.
func (l *Lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closing {
		l.closing = true
		close(l.out)
	}
}

// Closed tells whether l takes no more requests.
func (l *Lane) Closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closing
}

// settle hands an answer to who waits for it, if anybody does.
func (l *Lane) settle(id uint64, h *ringmodv1.Header) {
	l.mu.Lock()
	answer := l.waiting[id]
	delete(l.waiting, id)
	l.mu.Unlock()
	if answer != nil {
		answer <- h
	}
}

// ask queues a request; nil when it cannot be sent now.
func (l *Lane) ask(req *ringmodv1.GetRequest) (id uint64, answer <-chan *ringmodv1.Header) {
	c := make(chan *ringmodv1.Header, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing || !l.rests.IsZero() && time.Now().Before(l.rests) {
		return 0, nil
	}
	select {
	case l.out <- &ringmodv1.GetSmallRequest{Id: l.last + 1, Get: req}:
	default:
		return 0, nil
	}
	l.last++
	l.waiting[l.last] = c
	return l.last, c
}

// giveUp forgets a request. After silence l rests.
func (l *Lane) giveUp(id uint64, silent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, id)
	if silent {
		l.rests = time.Now().Add(laneRest)
	}
}

// Get returns the object, whole, or nil where Get has to be asked for it. See
// SuitsLane.
func (l *Lane) Get(ctx context.Context, req cache.Request, o Options) *cache.Object {
	id, answer := l.ask(request(req, o))
	if answer == nil {
		return nil
	}
	timer := time.NewTimer(lanePatience)
	defer timer.Stop()
	select {
	case h := <-answer:
		return l.object(h, o)
	case <-timer.C:
		l.giveUp(id, true)
	case <-ctx.Done():
		l.giveUp(id, false)
	case <-l.done:
	}
	return nil
}

// object makes the answer from a header. What is wrong with it is for Get to say.
func (l *Lane) object(h *ringmodv1.Header, o Options) *cache.Object {
	if h == nil || h.Inline == nil || len(h.GetInline()) > MaxInline {
		return nil
	}
	obj, err := (&stream{node: l.node}).describe(h)
	if err != nil || obj.Size != int64(len(h.GetInline())) || obj.SHA256 != sha256.Sum256(h.GetInline()) {
		return nil
	}
	if o.OnHeader != nil {
		o.OnHeader(h)
	}
	obj.Body = inlineBody{bytes.NewReader(h.GetInline())}
	return obj
}
