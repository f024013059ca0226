package antientropy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/ringmod/ringmod/node/store"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Limits of what a peer can make us do.
const (
	callLimit = 30 * time.Second // for a call of Digests or Announce
	listLimit = 2 * time.Minute  // for all keys of a partition
	peerLimit = 5 * time.Minute  // for all partitions of a peer
	maxPage   = 1024             // keys in a message (peer.proto)
	maxKeys   = 1 << 20          // of a partition
)

var errRules = errors.New("an answer that breaks the rules")

func digestOf(p ring.Partition, s store.Sum) *ringmodv1.PartitionDigest {
	return &ringmodv1.PartitionDigest{
		Partition: uint32(p), Count: uint64(s.Objects), Bytes: uint64(s.Bytes), SumHigh: s.High, SumLow: s.Low,
	}
}

// sumOf reads a digest; ok is false for one that nothing can have.
func sumOf(d *ringmodv1.PartitionDigest) (p ring.Partition, s store.Sum, ok bool) {
	if d.GetPartition() >= ring.Partitions || d.GetCount() > math.MaxInt64 || d.GetBytes() > math.MaxInt64 {
		return 0, store.Sum{}, false
	}
	s = store.Sum{Objects: int64(d.GetCount()), Bytes: int64(d.GetBytes()), High: d.GetSumHigh(), Low: d.GetSumLow()}
	return ring.Partition(d.GetPartition()), s, true
}

// digests asks a peer which partitions differ, and returns its sums of those.
func (c *Comparer) digests(ctx context.Context, id string, parts []ring.Partition, sums []store.Sum) (map[ring.Partition]store.Sum, error) {
	conn, err := c.cfg.Nodes.Conn(id)
	if err != nil {
		return nil, err
	}
	req := &ringmodv1.DigestsRequest{Caller: c.cfg.Self, Unannounced: c.cfg.Hints != nil && c.cfg.Hints.Unsynced(id)}
	req.ViewDigest, req.ViewSeq = c.stamp()
	asked := make(map[ring.Partition]bool, len(parts))
	for _, p := range parts {
		asked[p] = true
		req.Digests = append(req.Digests, digestOf(p, sums[p]))
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	resp, err := ringmodv1.NewPeerServiceClient(conn).Digests(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.GetUnannounced() {
		c.cfg.Hints.Synced(id)
	}
	c.noticeView(id, resp.GetViewDigest(), resp.GetViewSeq())
	differing := make(map[ring.Partition]store.Sum, len(resp.GetDigests()))
	for _, d := range resp.GetDigests() {
		p, s, ok := sumOf(d)
		if !ok || !asked[p] {
			return nil, fmt.Errorf("%w: the digest of a partition that was not asked for", errRules)
		}
		if differing[p] = s; s == sums[p] {
			delete(differing, p)
		}
	}
	return differing, nil
}

// noticeView tells OnView of a view that differs from ours.
func (c *Comparer) noticeView(id string, digest, seq uint64) {
	if ours := c.viewDigest(); seq > 0 && ours != digest {
		c.cfg.OnView(id, digest, seq)
	}
}

// keysOf visits the keys that a peer holds of a partition, in the order of their
// hashes.
func (c *Comparer) keysOf(ctx context.Context, id string, p ring.Partition, visit func(*ringmodv1.Key) error) error {
	last, n := uint64(0), 0
	return c.keys(ctx, id, p, nil, func(k *ringmodv1.Key) error {
		if n++; k.GetHash() < last || n > maxKeys {
			return fmt.Errorf("%w: keys out of order or without end", errRules)
		}
		last = k.GetHash()
		return visit(k)
	})
}

// copiesOf visits the copies of these hashes, at most maxPage, that a peer holds.
func (c *Comparer) copiesOf(ctx context.Context, id string, p ring.Partition, hashes []uint64, visit func(hash uint64, theirs *ringmodv1.Copy)) error {
	n := 0
	return c.keys(ctx, id, p, hashes, func(k *ringmodv1.Key) error {
		if n++; n > 2*maxPage {
			return fmt.Errorf("%w: more copies than were asked for", errRules)
		}
		visit(k.GetHash(), k.GetCopy())
		return nil
	})
}

func (c *Comparer) keys(ctx context.Context, id string, p ring.Partition, hashes []uint64, visit func(*ringmodv1.Key) error) error {
	conn, err := c.cfg.Nodes.Conn(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, listLimit)
	defer cancel()
	req := &ringmodv1.KeysRequest{Partition: uint32(p), Hashes: hashes}
	req.ViewDigest, req.ViewSeq = c.stamp()
	stream, err := ringmodv1.NewPeerServiceClient(conn).Keys(ctx, req)
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(resp.GetKeys()) > maxPage {
			return fmt.Errorf("%w: a page of %d keys", errRules, len(resp.GetKeys()))
		}
		for _, k := range resp.GetKeys() {
			if err := visit(k); err != nil {
				return err
			}
		}
	}
}
