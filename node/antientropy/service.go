package antientropy

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Digests is that of PeerService.
func (c *Comparer) Digests(ctx context.Context, req *ringmodv1.DigestsRequest) (_ *ringmodv1.DigestsResponse, err error) {
	defer c.end(ctx, "Digests", &err)
	if n := len(req.GetDigests()); n > ring.Partitions {
		return nil, status.Errorf(codes.InvalidArgument, "digests of %d partitions, there are %d", n, ring.Partitions)
	}
	c.noticeView(cmp.Or(c.cfg.Caller(ctx), req.GetCaller()), req.GetViewDigest(), req.GetViewSeq())
	if req.GetUnannounced() {
		c.Wake()
	}
	sums, err := c.sums(ctx)
	if err != nil {
		return nil, err
	}
	resp := &ringmodv1.DigestsResponse{}
	seen := make([]bool, ring.Partitions)
	for _, d := range req.GetDigests() {
		p, theirs, ok := sumOf(d)
		if !ok || seen[p] {
			return nil, status.Errorf(codes.InvalidArgument, "partition %d is none, comes twice or holds more than can be", d.GetPartition())
		}
		if seen[p] = true; theirs != sums[p] {
			resp.Digests = append(resp.Digests, digestOf(p, sums[p]))
		}
	}
	resp.ViewDigest, resp.ViewSeq = c.stamp()
	return resp, nil
}

// sums returns the sums of all partitions.
func (c *Comparer) sums(ctx context.Context) ([]store.Sum, error) {
	sums, err := c.cfg.Store.Sums(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]store.Sum, ring.Partitions)
	copy(all, sums)
	return all, nil
}

// Keys is that of PeerService.
func (c *Comparer) Keys(req *ringmodv1.KeysRequest, stream grpc.ServerStreamingServer[ringmodv1.KeysResponse]) (err error) {
	ctx := stream.Context()
	defer c.end(ctx, "Keys", &err)
	if req.GetPartition() >= ring.Partitions || len(req.GetHashes()) > maxPage {
		return status.Errorf(codes.InvalidArgument, "partition %d and %d hashes, want less than %d and at most %d",
			req.GetPartition(), len(req.GetHashes()), ring.Partitions, maxPage)
	}
	c.noticeView(c.cfg.Caller(ctx), req.GetViewDigest(), req.GetViewSeq())
	if len(req.GetHashes()) > 0 {
		return c.sendCopies(req, stream)
	}
	now := time.Now()
	return c.ourKeys(ctx, ring.Partition(req.GetPartition()), func(page []store.Key) error {
		resp := &ringmodv1.KeysResponse{}
		for _, k := range page {
			resp.Keys = append(resp.Keys, describe(k, now))
		}
		resp.ViewDigest, resp.ViewSeq = c.stamp()
		return stream.Send(resp)
	})
}

// ourKeys visits the pages of what is here of a partition.
func (c *Comparer) ourKeys(ctx context.Context, p ring.Partition, visit func([]store.Key) error) error {
	var after store.Key
	for {
		page, err := c.cfg.Store.Keys(ctx, int(p), after, maxPage)
		if err != nil || len(page) == 0 {
			return err
		}
		if err := visit(page); err != nil {
			return err
		}
		if len(page) < maxPage {
			return nil
		}
		after = page[len(page)-1]
	}
}

func describe(k store.Key, now time.Time) *ringmodv1.Key {
	return &ringmodv1.Key{Hash: k.Hash, Digest: k.Digest, Size: uint64(k.Size), UnusedDays: unusedDays(k.Used, now)}
}

const day = 24 * time.Hour

func unusedDays(used, now time.Time) uint32 {
	return uint32(min(max(0, now.Sub(used)/day), 1<<20))
}

// copyBatch keeps messages with copies below 1 MiB.
const copyBatch = 128

// sendCopies answers with the copies of the hashes that are wanted, in their order.
func (c *Comparer) sendCopies(req *ringmodv1.KeysRequest, stream grpc.ServerStreamingServer[ringmodv1.KeysResponse]) error {
	resp := &ringmodv1.KeysResponse{}
	send := func() error {
		if len(resp.GetKeys()) == 0 {
			return nil
		}
		resp.ViewDigest, resp.ViewSeq = c.stamp()
		err := stream.Send(resp)
		resp = &ringmodv1.KeysResponse{}
		return err
	}
	for _, hash := range req.GetHashes() {
		key, ok, err := c.find(stream.Context(), ring.Partition(req.GetPartition()), hash)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if resp.Keys = append(resp.Keys, key); len(resp.GetKeys()) == copyBatch {
			if err := send(); err != nil {
				return err
			}
		}
	}
	return send()
}

// find returns the first object with this hash, and its copy.
func (c *Comparer) find(ctx context.Context, p ring.Partition, hash uint64) (_ *ringmodv1.Key, ok bool, err error) {
	page, err := c.cfg.Store.Keys(ctx, int(p), store.Key{Hash: hash}, 1)
	if err != nil || len(page) == 0 || page[0].Hash != hash {
		return nil, false, err
	}
	theCopy, err := c.copyOf(page[0].Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil // removed meanwhile
	}
	if err != nil {
		return nil, false, err
	}
	key := describe(page[0], time.Now())
	key.Copy = theCopy
	return key, true, nil
}

// copyOf describes an object that is here.
func (c *Comparer) copyOf(name string) (*ringmodv1.Copy, error) {
	e, err := c.cfg.Store.Stat(name)
	if err != nil {
		return nil, err
	}
	return &ringmodv1.Copy{
		Target: name, Size: uint64(e.Size), Sha256: e.SHA256[:], H1: e.H1, Verified: e.Verified,
		StoredAge: durationpb.New(max(0, time.Since(e.Stored))),
	}, nil
}

// digestIn returns the SHA-256 of a copy.
func digestIn(c *ringmodv1.Copy) (sum [sha256.Size]byte, ok bool) {
	if len(c.GetSha256()) != len(sum) {
		return sum, false
	}
	return [sha256.Size]byte(c.GetSha256()), true
}

// end turns what ended a call into its status.
func (c *Comparer) end(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		c.log.ErrorContext(ctx, "panic in a call", "method", method, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the member failed while answering")
		return
	}
	if *err == nil {
		return
	}
	if _, ok := status.FromError(*err); ok {
		return
	}
	if ctx.Err() != nil {
		*err = status.FromContextError(ctx.Err()).Err()
		return
	}
	c.log.ErrorContext(ctx, "reading the index", "method", method, "err", *err)
	*err = status.Error(codes.Internal, "the node cannot read its index")
}
