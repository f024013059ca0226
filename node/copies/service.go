package copies

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/upstream"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// waitPause is between looks at what a caller waits for, longer each time.
const minWaitPause, maxWaitPause = 2 * time.Millisecond, 50 * time.Millisecond

// Announce is that of PeerService.
func (k *Keeper) Announce(ctx context.Context, req *ringmodv1.AnnounceRequest) (_ *ringmodv1.AnnounceResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			k.log.ErrorContext(ctx, "panic in a call", "method", "Announce", "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "the member failed while answering")
		}
	}()
	n := len(req.GetCopies())
	switch {
	case n == 0 || n > maxBatch:
		return nil, status.Errorf(codes.InvalidArgument, "%d copies, want 1 to %d", n, maxBatch)
	case ring.CheckName("node id", req.GetHolder(), 1, ring.MaxIDLen) != nil || req.GetHolder() == k.cfg.Self:
		return nil, status.Error(codes.InvalidArgument, "the holder is no other node")
	case !k.pulls.room(n):
		return nil, status.Error(codes.ResourceExhausted, "too many copies wait to be pulled")
	}
	k.compare(k.cfg.Caller(ctx), req.GetViewDigest(), req.GetViewSeq())
	resp := &ringmodv1.AnnounceResponse{Outcomes: make([]ringmodv1.Outcome, n)}
	for i, c := range req.GetCopies() {
		resp.Outcomes[i] = k.consider(ctx, c, req)
	}
	if req.GetWait() {
		if err := k.await(ctx, req, resp.GetOutcomes()); err != nil {
			return nil, status.FromContextError(err).Err()
		}
	}
	resp.ViewDigest, resp.ViewSeq = k.stamp()
	return resp, nil
}

// consider decides about an announced object, and queues it where it is wanted.
func (k *Keeper) consider(ctx context.Context, c *ringmodv1.Copy, req *ringmodv1.AnnounceRequest) ringmodv1.Outcome {
	holder := req.GetHolder()
	t, err := target.Parse(c.GetTarget())
	if err != nil || !travels(t.Kind) || len(c.GetSha256()) != sha256.Size || c.GetSize() > uint64(upstream.Limit(t.Kind)) ||
		!k.mayHold(t, req.GetWait()) || !k.isHolder(holder) {
		return ringmodv1.Outcome_OUTCOME_DECLINED
	}
	digest := [32]byte(c.GetSha256())
	switch outcome := k.outcome(t, c, digest); {
	case outcome == ringmodv1.Outcome_OUTCOME_CONFLICT:
		k.log.ErrorContext(ctx, "two copies differ", "key", t.String(), "peer", holder, "theirs", fmt.Sprintf("%x", digest))
		k.cfg.OnConflict(t, holder, c)
		return outcome
	case outcome == ringmodv1.Outcome_OUTCOME_WANTED && k.cfg.Declines(t, c):
		return ringmodv1.Outcome_OUTCOME_DECLINED
	case outcome == ringmodv1.Outcome_OUTCOME_WANTED && !k.isHere(ctx, t):
		p := &pull{target: t, digest: digest, holder: holder}
		if req.GetWait() {
			k.pulls.hurry(p)
		} else {
			k.pulls.add(p)
		}
		return outcome
	default:
		return outcome
	}
}

// outcome compares an announced object with what is stored here.
func (k *Keeper) outcome(t target.Target, c *ringmodv1.Copy, digest [32]byte) ringmodv1.Outcome {
	if !t.Kind.Immutable() {
		doc, err := k.cfg.Documents.Document(t.String())
		if err == nil && time.Since(doc.Fetched) <= c.GetAge().AsDuration() {
			return ringmodv1.Outcome_OUTCOME_HELD
		}
		return ringmodv1.Outcome_OUTCOME_WANTED
	}
	entry, err := k.cfg.Store.Stat(t.String())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ringmodv1.Outcome_OUTCOME_WANTED
	case err != nil:
		k.log.Error("reading the entry of an object", "key", t.String(), "err", err)
		return ringmodv1.Outcome_OUTCOME_WANTED // nothing can be said of it now
	case entry.SHA256 == digest || !fixed(t.Kind):
		return ringmodv1.Outcome_OUTCOME_HELD
	default:
		return ringmodv1.Outcome_OUTCOME_CONFLICT
	}
}

// await waits until nothing more comes of what is wanted, and says what has come.
func (k *Keeper) await(ctx context.Context, req *ringmodv1.AnnounceRequest, outcomes []ringmodv1.Outcome) error {
	for i, c := range req.GetCopies() {
		t, err := target.Parse(c.GetTarget())
		if outcomes[i] != ringmodv1.Outcome_OUTCOME_WANTED || err != nil {
			continue
		}
		pause := minWaitPause
		for comes := true; comes; pause = min(2*pause, maxWaitPause) {
			comes = k.pulls.has(t.String()) || k.isHere(ctx, t)
			if outcomes[i] = k.outcome(t, c, [32]byte(c.GetSha256())); outcomes[i] != ringmodv1.Outcome_OUTCOME_WANTED || !comes {
				break
			}
			if !sleep(ctx, pause) {
				return ctx.Err()
			}
		}
	}
	return nil
}

// mayHold tells whether this node takes t: as a replica, or as a spare rank from a holder
// who finds no other place for a second copy.
func (k *Keeper) mayHold(t target.Target, needed bool) bool {
	if k.isReplica(t, k.cfg.Self) {
		return true
	}
	view := k.cfg.View()
	if view == nil || !needed {
		return false
	}
	i, in := view.Find(k.cfg.Self)
	return in && slices.Contains(view.Next().Ranks(k.cfg.Region, ring.OfTarget(t)), i)
}

// isReplica tells whether a member of this region should hold t, now or soon.
func (k *Keeper) isReplica(t target.Target, id string) bool {
	view := k.cfg.View()
	if view == nil {
		return false
	}
	i, in := view.Find(id)
	p := ring.OfTarget(t)
	return in && (slices.Contains(view.Next().Replicas(k.cfg.Region, p), i) || slices.Contains(view.Current().Replicas(k.cfg.Region, p), i))
}

// isHolder tells whether a member is a node that may be pulled from.
func (k *Keeper) isHolder(id string) bool {
	view := k.cfg.View()
	if view == nil {
		return false
	}
	i, in := view.Find(id)
	return in && view.Member(i).Region == k.cfg.Region
}
