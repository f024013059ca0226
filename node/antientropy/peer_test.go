package antientropy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// Two copies that differ stay, and somebody hears of it, once.
func TestConflict(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2")
		a, b := w.nodes["a1"], w.nodes["a2"]
		lookup := "sumdb/sum.example.com/lookup/example.com/m@v1.0.0"
		for i, n := range []*node{a, b} {
			n.put(modName(1), "data of "+n.id)
			n.put(lookup, "head "+n.id)
			n.put(modName(2+i), "only here")
		}
		w.run()
		time.Sleep(time.Hour)
		for _, n := range []*node{a, b} {
			n.mu.Lock()
			if !slices.Equal(n.conflicts, []string{modName(1)}) {
				t.Errorf("%s: conflicts %q, want one of %s", n.id, n.conflicts, modName(1))
			}
			n.mu.Unlock()
			if got := len(n.names()); got != 4 {
				t.Errorf("%s holds %d objects, want 4", n.id, got)
			}
		}
		if x, _ := a.Stat(modName(1)); x.Size != int64(len("data of a1")) {
			t.Error("a copy was replaced")
		}
	})
}

// What fails is tried again later, and counts as missing.
func TestFailedPull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2")
		a, b := w.nodes["a1"], w.nodes["a2"]
		a.put(modName(1), "data")
		b.set(func() { b.fails = errors.New("the disk is full") })
		w.run()
		time.Sleep(time.Hour)
		if p, known := b.Progress(); !known || p.Missing != 4 || p.Partitions != 1 {
			t.Errorf("%+v, %v", p, known)
		}
		b.set(func() { b.fails = nil })
		time.Sleep(2 * time.Hour)
		if p, _ := b.Progress(); !b.holds(modName(1)) || p.Missing != 0 {
			t.Errorf("not pulled, %+v", p)
		}
	})
}

// A member whose hints were lost is asked to compare.
func TestUnannounced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a1", "a2")
		w.run()
		time.Sleep(time.Second)
		w.nodes["a1"].put(modName(1), "data")
		if _, err := w.nodes["a2"].Digests(t.Context(), &ringmodv1.DigestsRequest{Unannounced: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if !w.nodes["a2"].holds(modName(1)) {
			t.Error("not pulled")
		}
	})
}

// What a caller may not send is refused.
func TestBadCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "a1")
	n := w.nodes["a1"]
	digest := func(p uint32, count uint64) *ringmodv1.PartitionDigest {
		return &ringmodv1.PartitionDigest{Partition: p, Count: count}
	}
	for _, digests := range [][]*ringmodv1.PartitionDigest{
		{digest(ring.Partitions, 0)}, {digest(1, 0), digest(1, 0)}, {digest(1, math.MaxUint64)}, make([]*ringmodv1.PartitionDigest, ring.Partitions+1),
	} {
		if _, err := n.Digests(t.Context(), &ringmodv1.DigestsRequest{Digests: digests}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%d digests: %v", len(digests), err)
		}
	}
	for _, req := range []*ringmodv1.KeysRequest{{Partition: ring.Partitions}, {Hashes: make([]uint64, 1025)}} {
		if err := n.Comparer.Keys(req, &serverStream{stream: &stream{ctx: t.Context()}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
}

// liar answers with what its random numbers make of the truth.
type liar struct {
	*node

	random *rand.Rand
}

func (l liar) Digests(ctx context.Context, req *ringmodv1.DigestsRequest) (*ringmodv1.DigestsResponse, error) {
	resp, err := l.node.Comparer.Digests(ctx, req)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for range l.random.IntN(3) {
		resp.Digests = append(resp.Digests, &ringmodv1.PartitionDigest{
			Partition: uint32(l.random.IntN(4200)), Count: l.random.Uint64() >> l.random.IntN(64), Bytes: l.random.Uint64() >> l.random.IntN(64),
		})
	}
	return resp, nil
}

func (l liar) Keys(req *ringmodv1.KeysRequest, to grpc.ServerStreamingServer[ringmodv1.KeysResponse]) error {
	l.mu.Lock()
	pages := l.pages(req)
	l.mu.Unlock()
	for _, page := range pages {
		if err := to.Send(page); err != nil {
			return err
		}
	}
	return nil
}

func (l liar) pages(req *ringmodv1.KeysRequest) (pages []*ringmodv1.KeysResponse) {
	names := []string{modName(1), modName(l.random.IntN(100)), "../../etc/passwd", "", "example.com/m/@v/list"}
	for range l.random.IntN(3) {
		page := &ringmodv1.KeysResponse{}
		for i := range l.random.IntN(20) {
			k := &ringmodv1.Key{Hash: l.random.Uint64() >> l.random.IntN(64), Digest: l.random.Uint64(), Size: l.random.Uint64() >> l.random.IntN(64), UnusedDays: uint32(l.random.IntN(9))}
			if i < len(req.GetHashes()) {
				k.Hash = req.GetHashes()[i]
			}
			if l.random.IntN(2) == 0 {
				sum := make([]byte, []int{0, 31, 32, 32, 33}[l.random.IntN(5)])
				if len(sum) >= 8 {
					binary.BigEndian.PutUint64(sum, k.Digest)
				}
				k.Copy = &ringmodv1.Copy{Target: names[l.random.IntN(len(names))], Sha256: sum, Size: k.Size}
			}
			page.Keys = append(page.Keys, k)
		}
		if l.random.IntN(2) == 0 {
			slices.SortFunc(page.GetKeys(), func(a, b *ringmodv1.Key) int { return int(int64(a.GetHash()>>1) - int64(b.GetHash()>>1)) })
		}
		pages = append(pages, page)
	}
	return pages
}

// A peer that lies costs calls. It brings nothing here, takes nothing away, and does
// not keep others from bringing.
func TestLiar(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) { lie(t, seed) })
	}
}

// FuzzPeer lets the seed choose the lies.
func FuzzPeer(f *testing.F) {
	for seed := range uint64(3) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { lie(t, seed) })
	})
}

func lie(t *testing.T, seed uint64) {
	t.Helper()
	w := newWorld(t, "a1", "a2", "a3")
	n := w.nodes["a1"]
	for i := range 50 {
		n.put(modName(i), "data")
	}
	for i := 50; i < 60; i++ {
		w.nodes["a3"].put(modName(i), "data")
	}
	l := liar{w.nodes["a2"], rand.New(rand.NewPCG(seed, 1))}
	l.server = l
	w.start(n)
	time.Sleep(30 * time.Minute)
	for i := range 60 {
		want := i < 50 || slices.Contains(replicasOf(t, w, modName(i)), "a1") && slices.Contains(replicasOf(t, w, modName(i)), "a3")
		if n.holds(modName(i)) != want {
			t.Errorf("%s is there: %v, want %v", modName(i), !want, want)
		}
	}
	if got := len(n.names()); got > 60 {
		t.Errorf("it holds %d objects", got)
	}
	if p, _ := n.Progress(); p.Missing < 0 || p.Total < p.Missing {
		t.Errorf("%+v", p)
	}
}
