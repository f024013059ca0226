package polite

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/ringmod/ringmod/internal/cache"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// village is a cluster in memory: each message takes 10 ms.
type village struct {
	t    *testing.T
	view *ring.View

	mu      sync.Mutex
	nodes   map[string]*villager
	changed chan struct{}
	cut     map[string]bool // reached by nobody
}

type villager struct {
	hosts  *Hosts
	keeper *Keeper
}

// newVillage starts nodes a1, a2, a3 in region a and b1 in region b.
func newVillage(t *testing.T) *village {
	t.Helper()
	v := &village{t: t, nodes: map[string]*villager{}, changed: make(chan struct{}), cut: map[string]bool{}}
	var table ring.Members
	for i, id := range []string{"a1", "a2", "a3", "b1"} {
		m := ring.Member{
			ID: id, Boot: "boot", Epoch: uint64(i + 1), Region: id[:1], Weight: 1, State: ring.Active, Role: ring.Node, Addr: "127.0.0.1:1", Spec: ring.DefaultSpec().Hash(),
		}
		if _, err := table.Put(m); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if v.view, err = ring.NewView(ring.DefaultSpec(), &table); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	for _, m := range v.view.Members() {
		hosts := New(Config{})
		k := NewKeeper(KeeperConfig{
			Self: m.ID, Region: m.Region, Hosts: hosts, View: func() *ring.View { return v.view }, Changed: v.wait, Nodes: villageOf{v, m.ID},
		})
		v.nodes[m.ID] = &villager{hosts, k}
		group.Go(func() { _ = k.Run(ctx) })
	}
	time.Sleep(time.Second)
	return v
}

func (v *village) wait() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// setCut cuts a node off or brings it back.
func (v *village) setCut(id string, cut bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cut[id] = cut
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *village) isCut(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.cut[id]
}

// states tells how each node thinks that host x does.
func (v *village) states() string {
	text := ""
	for _, m := range v.view.Members() {
		h := v.nodes[m.ID].hosts.Host("x", Proxy).current()
		text += fmt.Sprintf("%s %v %v; ", m.ID, h.State, h.Left.Round(time.Second))
	}
	return text
}

// villageOf is the village as one of its nodes reaches it.
type villageOf struct {
	*village

	self string
}

func (v villageOf) Usable(id string) bool { return !v.isCut(id) && !v.isCut(v.self) }

func (v villageOf) Conn(id string) (grpc.ClientConnInterface, error) { return road{v, id}, nil }

type road struct {
	from villageOf
	to   string
}

func (r road) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	time.Sleep(10 * time.Millisecond)
	if method != ringmodv1.PeerService_Hosts_FullMethodName || !r.from.Usable(r.to) {
		return errors.New("no such way")
	}
	resp, err := r.from.nodes[r.to].keeper.Exchange(ctx, args.(*ringmodv1.HostsRequest))
	if err == nil {
		proto.Merge(reply.(proto.Message), resp)
	}
	return err
}

func (r road) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("there are no streams here")
}

func TestAllNodesLeaveAHostAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		v.setCut("a3", true)
		v.nodes["a1"].hosts.Host("x", Proxy).Refused(time.Minute, true, "429")
		time.Sleep(20 * time.Millisecond)
		if got, want := v.states(), "a1 held 1m0s; a2 held 1m0s; a3 ok 0s; b1 held 1m0s; "; got != want {
			t.Errorf("20 ms later: %s, want %s", got, want)
		}
		v.setCut("a3", false)
		time.Sleep(askEvery + time.Second)
		if got, want := v.states(), "a1 held 44s; a2 held 44s; a3 held 44s; b1 held 44s; "; got != want {
			t.Errorf("16 s later, a3 being back: %s, want %s", got, want)
		}
		time.Sleep(45 * time.Second)
		if got, want := v.states(), "a1 ok 0s; a2 ok 0s; a3 ok 0s; b1 ok 0s; "; got != want {
			t.Errorf("after that: %s, want %s", got, want)
		}
	})
}

func TestARegionKnowsWhoIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t)
		v.nodes["a3"].hosts.Host("x", Proxy).Answered()
		x := v.nodes["a1"].hosts.Host("x", Proxy)
		x.Unreachable(time.Now(), &cache.Error{Reason: cache.Slow, Source: "x", Text: "no answer"})
		time.Sleep(20 * time.Millisecond)
		if got, want := v.states(), "a1 down 1s; a2 down 1s; a3 ok 0s; b1 ok 0s; "; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if err := v.nodes["a2"].hosts.Host("x", Proxy).Turn(t.Context(), soon()); cache.ReasonOf(err) != cache.Slow {
			t.Errorf("who asks elsewhere gets %v, want the same as here", err)
		}
		x.Answered()
		time.Sleep(20 * time.Millisecond)
		wantTurn(t, v.nodes["a2"].hosts.Host("x", Proxy))
	})
}

// TestNobodyInventsAbsence has a node say that a host is down as what does not exist is.
func TestNobodyInventsAbsence(t *testing.T) {
	t.Parallel()
	for _, state := range []ringmodv1.HostState{ringmodv1.HostState_HOST_STATE_DOWN, ringmodv1.HostState_HOST_STATE_HELD} {
		holds := decode([]*ringmodv1.HostHold{
			{Host: "x", State: state, Error: &ringmodv1.ErrorDetail{Reason: ringmodv1.Reason_REASON_NOT_FOUND, Text: "no\nsuch"}},
			{Host: "", State: state},
			{Host: "a b", State: state},
			nil,
		}, true)
		if len(holds) != 1 || holds[0].Error.Reason.Absent() || holds[0].Error.Text != "no such" || holds[0].Error.Source != "x" {
			t.Errorf("%v: decoded as %+v", state, holds)
		}
	}
	if got := decode([]*ringmodv1.HostHold{{Host: "x", State: ringmodv1.HostState_HOST_STATE_DOWN}}, false); len(got) > 0 {
		t.Errorf("another region's %+v was taken over", got)
	}
}
