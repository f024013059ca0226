package peers

import (
	"errors"
	"io"
	"sync/atomic"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// Body is an object that streams from a peer. It has all abilities of the body
// that it counts for the peer; see there for Resume and Prefix.
type Body struct {
	*wire.Body

	call *call
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.Body.Read(p)
	if err != nil {
		b.call.end(resultOf(err), err)
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (b *Body) WriteTo(w io.Writer) (int64, error) {
	n, err := b.Body.WriteTo(w)
	b.call.end(resultOf(err), err) // what is w's own error counts like a caller who has left
	return n, err
}

// Close ends the stream if it has not ended.
func (b *Body) Close() error {
	b.call.end(resultOK, nil)
	return b.Body.Close()
}

// call is a Get that runs.
type call struct {
	peer  *peer
	epoch uint64 // of the breaker when it began
	ended atomic.Bool
}

func (p *peer) begin() *call {
	p.inFlight.Add(1)
	return &call{peer: p, epoch: p.breaker.now()}
}

// end counts the outcome of a call, once.
func (c *call) end(result string, err error) {
	if c.ended.Swap(true) {
		return
	}
	p := c.peer
	p.inFlight.Add(-1)
	p.set.metrics.count(result)
	switch result {
	case resultFailed, resultFlaw:
		if p.breaker.failure(c.epoch, result == resultFlaw) {
			p.opened(err)
		}
	case resultCanceled, resultBusy:
	default:
		p.doubtful.Store(false)
		if p.breaker.success(c.epoch) {
			p.closed()
		}
	}
}

// Results of calls, beside the reasons of package cache.
const (
	resultOK       = "ok"
	resultBusy     = "overloaded"
	resultFailed   = "failed"
	resultFlaw     = "flawed"
	resultCanceled = "canceled"
)

// resultOf names the outcome of a call; nil and io.EOF are good.
func resultOf(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return resultOK
	}
	if e, said := errors.AsType[*cache.Error](err); said {
		return e.Reason.String()
	}
	e, trouble := errors.AsType[*wire.PeerError](err)
	if !trouble {
		return resultCanceled // by the caller's context, Close, or what he writes to
	}
	switch e.Code {
	case codes.ResourceExhausted:
		return resultBusy
	case codes.DataLoss:
		return resultFlaw
	default:
		return resultFailed
	}
}
