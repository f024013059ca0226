package cluster

import (
	"errors"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
)

// step is what follows a call that brought no object.
type step uint8

const (
	// give: the error is the answer.
	give step = iota
	// fill: the node has not got it, which says nothing: ask the coordinator, with
	// leave to fill.
	fill
	// next: the node is of no use. Ask another; the next coordinator where this was
	// one.
	next
	// retry: the node has too much to do. Ask another, if the budget has room.
	retry
	// elsewhere: the coordinator has spoken, and all that is left to hope for is a
	// copy: ask everybody else who may hold one, then the error is the answer.
	elsewhere
)

// steps is the table of cluster.md 4.6, by what the node said: to a call that was
// OnlyIfCached, to one that had leave to fill, and to one that had it for what
// changes, of which an old copy is no better than a no.
var steps = [...]struct{ cached, filled, changing step }{
	cache.Internal:  {next, next, next},
	cache.NotFound:  {fill, elsewhere, give},
	cache.Gone:      {fill, elsewhere, give},
	cache.NotCached: {fill, elsewhere, elsewhere},
	cache.Malformed: {give, give, give},
	cache.Denied:    {fill, elsewhere, give},
	cache.Busy:      {retry, retry, retry},
	cache.Broken:    {fill, elsewhere, elsewhere},
	cache.Slow:      {fill, elsewhere, elsewhere},
	cache.Mismatch:  {fill, elsewhere, give},
	cache.Purged:    {give, give, give},
}

// stepAfter looks err up. What is not in the table is trouble with the node or
// the way to it, which says nothing of the object.
func stepAfter(err error, mode cache.Mode, immutable bool) step {
	if e, ok := errors.AsType[*cache.Error](err); ok {
		if int(e.Reason) >= len(steps) {
			return next
		}
		row := steps[e.Reason]
		switch {
		case mode != cache.AllowFill:
			return row.cached
		case immutable:
			return row.filled
		default:
			return row.changing
		}
	}
	if crowded(err) {
		return retry
	}
	return next
}

// crowded tells whether err says that a node is busy, not dead.
func crowded(err error) bool {
	e, ok := errors.AsType[*wire.PeerError](err)
	return ok && e.Code == codes.ResourceExhausted
}

// why names err in metrics.
func why(err error) string {
	if e, ok := errors.AsType[*cache.Error](err); ok {
		return e.Reason.String()
	}
	e, ok := errors.AsType[*wire.PeerError](err)
	switch {
	case ok && e.Code == codes.ResourceExhausted:
		return cache.Busy.String()
	case ok && e.Code == codes.DataLoss:
		return "corrupt"
	case ok && errors.Is(err, wire.ErrSilent):
		return "silent"
	default:
		return "unreachable"
	}
}

// goesOn tells whether the rest of an object is worth asking for elsewhere after
// its body has failed with err: always when the node is to blame; and when a copy
// is known to exist, also when the node says that it cannot get at it.
func goesOn(err error, copied bool) bool {
	if _, ok := errors.AsType[*wire.PeerError](err); ok {
		return true
	}
	if e, ok := errors.AsType[*cache.Error](err); ok {
		switch e.Reason {
		case cache.Internal, cache.Busy:
			return true
		case cache.Broken, cache.Slow, cache.NotCached:
			return copied
		}
	}
	return false
}

// spoken tells whether err is what a coordinator says of upstream, after which
// there is nothing to hope for but a copy.
func spoken(err error) bool {
	_, ok := errors.AsType[*cache.Error](err)
	return ok && stepAfter(err, cache.AllowFill, true) == elsewhere
}
