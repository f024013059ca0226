package antientropy

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// pullAll gets what is wanted, until the placement or the room is another one.
func (r *round) pullAll(ctx context.Context) {
	all := r.sorted()
	var group errgroup.Group
	group.SetLimit(pullsAt)
	for len(all) > 0 && r.goesOn(ctx) {
		n := 1
		for n < min(len(all), maxPage) && all[n].partition == all[0].partition && all[n].holder == all[0].holder {
			n++
		}
		some := all[:n]
		all = all[n:]
		if r.isBarred(some[0].holder) {
			continue
		}
		group.Go(func() error {
			r.pullSome(ctx, some)
			return nil
		})
	}
	_ = group.Wait()
	if len(all) > 0 {
		r.again()
	}
}

// goesOn tells whether to pull on.
func (r *round) goesOn(ctx context.Context) bool {
	return ctx.Err() == nil && r.viewDigest() == r.plan.view.Digest() && r.cfg.Store.HasRoom()
}

func (r *round) again() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unsettled = true
}

func (r *round) isBarred(holder string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.barred[holder]
}

func (r *round) bar(holder string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.barred[holder] = true
}

// pullSome gets objects of one partition from one holder.
func (r *round) pullSome(ctx context.Context, some []*want) {
	byHash := make(map[uint64]*want, len(some))
	hashes := make([]uint64, 0, len(some))
	for _, w := range some {
		byHash[w.hash] = w
		hashes = append(hashes, w.hash)
	}
	copies := make(map[uint64]*ringmodv1.Copy, len(some))
	err := r.copiesOf(ctx, some[0].holder, some[0].partition, hashes, func(hash uint64, theirs *ringmodv1.Copy) {
		if byHash[hash] != nil {
			copies[hash] = theirs
		}
	})
	if err != nil {
		r.failed(ctx, some[0].holder, err)
		r.bar(some[0].holder)
		return
	}
	for _, w := range some {
		if !r.goesOn(ctx) {
			r.again()
			return
		}
		r.pullOne(ctx, w, copies[w.hash])
	}
}

// pullOne gets an object, unless it is not what it was said to be or not welcome.
func (r *round) pullOne(ctx context.Context, w *want, theirs *ringmodv1.Copy) {
	t, sum, ok := w.read(theirs)
	if !ok || r.cfg.Declines(t, theirs) {
		r.came(w.size)
		r.refuse(w)
		return
	}
	pulled, err := r.cfg.Pulls.Pull(ctx, t, sum, w.holder)
	if err == nil && pulled && w.days > 0 {
		err = r.cfg.Store.Backdate(t.String(), r.now.Add(-time.Duration(w.days)*day))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if ctx.Err() == nil {
			r.log.DebugContext(ctx, "a copy was not pulled", "key", t.String(), "peer", w.holder, "err", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if trouble, ok := errors.AsType[*wire.PeerError](err); !ok || trouble.Code != codes.Unavailable { // else another may have it: the holder may just have left
			r.mem.fail(w.hash)
		}
		r.unsettled = true
		return
	}
	r.came(w.size)
	if pulled {
		r.metrics.pulled.Inc()
		r.metrics.bytes.Add(float64(w.size))
	}
}

// read returns what a copy is of, if it is what was wanted.
func (w *want) read(theirs *ringmodv1.Copy) (t target.Target, sum [32]byte, ok bool) {
	t, err := target.Parse(theirs.GetTarget())
	sum, ok = digestIn(theirs)
	if err != nil || !ok || !t.Kind.Immutable() || ring.OfTarget(t) != w.partition || xxhash.Sum64String(t.String()) != w.hash {
		return t, sum, false
	}
	if _, fixed := Place(t.String()); fixed && binary.BigEndian.Uint64(sum[:]) != w.digest {
		return t, sum, false
	}
	return t, sum, true
}

// refuse takes a want off its comparisons.
func (r *round) refuse(w *want) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ch := range w.checks {
		ch.open--
	}
}
