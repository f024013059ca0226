package purge

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/wire"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

const (
	maxPage = 1024 // tombstones of a request (peer.proto)
	page    = 256  // of a message, so that it stays well below a megabyte

	answerTime = time.Second // for the way of an answer that took its time

	// maxWrites is how often a purge is written anew because another node knows of a later
	// one of the same name.
	maxWrites = 3
)

// Tombstones is that method of PeerService.
func (k *Keeper) Tombstones(req *ringmodv1.TombstonesRequest, stream grpc.ServerStreamingServer[ringmodv1.TombstonesResponse]) (err error) {
	ctx := stream.Context()
	defer func() {
		if p := recover(); p != nil {
			k.log.ErrorContext(ctx, "panic in a call", "method", "Tombstones", "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "the member failed while answering")
		}
	}()
	if n := len(req.GetTombstones()); n > maxPage {
		return status.Errorf(codes.InvalidArgument, "%d tombstones, want at most %d", n, maxPage)
	}
	told := make([]Tombstone, len(req.GetTombstones()))
	for i, p := range req.GetTombstones() {
		if told[i], err = Decode(p); err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
	if len(told) > 0 {
		if err := k.apply(context.WithoutCancel(ctx), told); err != nil {
			return status.Error(codes.Internal, "not all of the purge is done here yet; it goes on")
		}
	}
	return k.tell(req, stream)
}

// tell sends what the caller does not know.
func (k *Keeper) tell(req *ringmodv1.TombstonesRequest, stream grpc.ServerStreamingServer[ringmodv1.TombstonesResponse]) error {
	first := &ringmodv1.TombstonesResponse{}
	if made := k.cfg.Set.lastForgotten(); !made.IsZero() {
		first.ForgottenAge = durationpb.New(ageOf(made))
	}
	var all []*ringmodv1.Tombstone
	if k.cfg.Set.Digest() != req.GetDigest() {
		all, _ = k.cfg.Set.News(0)
	}
	all = slices.DeleteFunc(all, func(t *ringmodv1.Tombstone) bool { return t.GetEpoch() <= req.GetSinceEpoch() })
	for more := first; more != nil; {
		n := min(page, len(all))
		more.Tombstones, all = all[:n], all[n:]
		if err := stream.Send(more); err != nil {
			return err
		}
		if more = nil; len(all) > 0 {
			more = &ringmodv1.TombstonesResponse{}
		}
	}
	return nil
}

// News is Since as members tell it to each other.
func (s *Set) News(seq uint64) (all []*ringmodv1.Tombstone, now uint64) {
	since, now := s.Since(seq)
	for _, t := range since {
		all = append(all, Encode(t))
	}
	return all, now
}

// Purge writes purges of names, or lifts them, and tells all nodes that are in. It returns
// when each has confirmed or had its time. Errors are *cache.Error, made for an
// operator: nothing was written then.
func (k *Keeper) Purge(ctx context.Context, names []Name, lift bool, text string) (*ringmodv1.PurgeResponse, error) {
	if err := k.check(names, lift); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // half a purge helps nobody
	var all []Tombstone
	var outcomes map[string]error
	for range maxWrites {
		var err error
		if all, err = k.cfg.Set.Write(names, lift, text); err != nil {
			return nil, &cache.Error{Reason: cache.Busy, Text: err.Error(), Err: err}
		}
		k.note(ctx, all)
		if outcomes = k.tellAll(ctx, all); k.stands(all) {
			break
		}
	}
	resp := &ringmodv1.PurgeResponse{}
	for _, t := range all {
		resp.Tombstones = append(resp.Tombstones, Encode(t))
	}
	for id, err := range outcomes {
		if err == nil {
			resp.Confirmed = append(resp.Confirmed, id)
			continue
		}
		resp.Unconfirmed = append(resp.Unconfirmed, id)
		k.log.WarnContext(ctx, "a node has not confirmed a purge", "member", id, "err", wire.FromStatus(err, id))
	}
	slices.Sort(resp.Confirmed)
	slices.Sort(resp.Unconfirmed)
	return resp, nil
}

// stands tells whether nobody has shown what wins over any of these.
func (k *Keeper) stands(all []Tombstone) bool {
	return !slices.ContainsFunc(all, func(t Tombstone) bool {
		now, _ := k.cfg.Set.Get(t.Name)
		return now.beats(t)
	})
}

// check tells what is wrong with an operator's request.
func (k *Keeper) check(names []Name, lift bool) error {
	there := false
	for _, n := range names {
		if err := n.Check(); err != nil {
			return &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
		}
		t, known := k.cfg.Set.Get(n)
		there = there || known && !t.Lifted
	}
	if !lift || there {
		return nil
	}
	for _, n := range names {
		if t, purged := k.cfg.Set.Find(n.Name); purged {
			return &cache.Error{Reason: cache.Malformed, Text: fmt.Sprintf("that is purged with all that begins with %q: lift that", t.Name.Name)}
		}
	}
	return &cache.Error{Reason: cache.Malformed, Text: "that is not purged"}
}

// tellAll tells everybody, this node included, and returns how each has taken it.
func (k *Keeper) tellAll(ctx context.Context, all []Tombstone) map[string]error {
	var mu sync.Mutex
	outcomes := make(map[string]error)
	var telling sync.WaitGroup
	add := func(id string, do func() error) {
		telling.Go(func() {
			err := do()
			mu.Lock()
			defer mu.Unlock()
			outcomes[id] = err
		})
	}
	add(k.cfg.Self, func() error { return k.settleSoon(ctx) })
	if view := k.cfg.View(); view != nil {
		for _, m := range k.others(view) {
			add(m.ID, func() error {
				ctx, cancel := context.WithTimeout(ctx, patience+answerTime)
				defer cancel()
				theirs, _, err := k.ask(ctx, m.ID, all)
				if err != nil {
					return err
				}
				news, err := k.cfg.Set.Merge(theirs...)
				k.note(ctx, news)
				return err
			})
		}
	}
	telling.Wait()
	return outcomes
}

// Explain returns the tombstone that keeps a target away, nil where there is none.
func (k *Keeper) Explain(name string) *ringmodv1.Tombstone {
	if t, ok := k.cfg.Set.Find(name); ok {
		return Encode(t)
	}
	return nil
}
