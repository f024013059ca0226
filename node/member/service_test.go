package member

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

func (p *ports) client() ringmodv1.ClusterServiceClient {
	p.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+firstAddr, grpc.WithContextDialer(p.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return ringmodv1.NewClusterServiceClient(conn)
}

func TestGetView(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(3)
		time.Sleep(repaired)
		ports := newPorts(t)
		ports.member(all[0])
		client := ports.client()
		resp, err := client.GetView(t.Context(), &ringmodv1.GetViewRequest{})
		if err != nil {
			t.Fatal(err)
		}
		v := resp.GetView()
		if len(v.GetMembers()) != 3 || v.GetCluster() != "test" || v.GetViewDigest() != all[0].View().Digest() {
			t.Errorf("got %v", v)
		}
		for _, tt := range []struct {
			name string
			req  *ringmodv1.GetViewRequest
			view bool
		}{
			{"the same", &ringmodv1.GetViewRequest{ViewDigest: v.GetViewDigest(), ViewSeq: v.GetViewSeq()}, false},
			{"an older one", &ringmodv1.GetViewRequest{ViewDigest: v.GetViewDigest(), ViewSeq: v.GetViewSeq() - 1}, true},
			{"another one", &ringmodv1.GetViewRequest{ViewDigest: 1, ViewSeq: v.GetViewSeq()}, true},
			{"nonsense", &ringmodv1.GetViewRequest{ViewDigest: 1<<64 - 1, ViewSeq: 1<<64 - 1}, true},
		} {
			resp, err := client.GetView(t.Context(), tt.req)
			if err != nil || (resp.GetView() != nil) != tt.view {
				t.Errorf("caller has %s: got %v, %v", tt.name, resp, err)
			}
		}
	})
}

// gateways returns a table of 300 that own nothing.
func gateways(epoch uint64) *ringmodv1.View {
	v := &ringmodv1.View{Cluster: "test"}
	for i := range 300 {
		e := entry(fmt.Sprintf("g%03d", i), epoch)
		e.Role = ring.Gateway
		v.Members = append(v.Members, encodeMember(e))
	}
	return v
}

// Each watcher gets the whole once and then what is new; one that does not read holds
// up nobody.
func TestWatchView(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		p := w.startAll(1)[0]
		ports := newPorts(t)
		ports.member(p)
		client := ports.client()
		type stream = grpc.ServerStreamingClient[ringmodv1.WatchViewResponse]
		watch := func() stream {
			s, err := client.WatchView(t.Context(), &ringmodv1.WatchViewRequest{})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		next := func(s stream) *ringmodv1.WatchViewResponse {
			msg, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			return msg
		}
		slow, one, two := watch(), watch(), watch()
		for _, s := range []stream{one, two} {
			if v := next(s).GetView(); len(v.GetMembers()) != 1 || v.GetSpec() == nil || v.GetCluster() != "test" {
				t.Errorf("first message is %v", v)
			}
		}
		start := time.Now()
		if msg := next(one); len(msg.GetView().GetMembers()) != 0 || msg.GetView().GetViewSeq() == 0 || time.Since(start) > signOfLife {
			t.Errorf("sign of life after %s is %v", time.Since(start), msg)
		}
		const rounds = 20 // more bytes than the windows of a stream hold
		for round := range uint64(rounds) {
			if err := p.Merge(gateways(round + 10)); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			for told := 0; told < 300; {
				msg := next(one)
				told += len(msg.GetView().GetMembers())
				if down := msg.GetDown(); told > 0 && (len(down) != 300 || slices.Contains(down, p.id)) || msg.GetView().GetSpec() != nil {
					t.Fatalf("round %d: %d are down, spec %v", round, len(down), msg.GetView().GetSpec())
				}
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("round %d is told after %s", round, took)
			}
		}
		messages := 0
		for last := uint64(0); last < rounds+9; messages++ {
			for _, m := range next(slow).GetView().GetMembers() {
				if m.GetId() == "g299" {
					last = m.GetEpoch()
				}
			}
		}
		if messages >= rounds {
			t.Errorf("the slow one got %d messages, too many to have been slow", messages)
		}
		p.stop()
		for {
			if _, err := two.Recv(); err != nil {
				if status.Code(err) != codes.Unavailable {
					t.Errorf("watch of a member that has stopped ends with %v", err)
				}
				break
			}
		}
	})
}

func TestWatchersAreBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(w *world) {
		t := w.t
		all := w.startAll(1)
		s := &service{m: all[0].Membership}
		ports := newPorts(t)
		ports.serve(firstAddr, func(r grpc.ServiceRegistrar) { ringmodv1.RegisterClusterServiceServer(r, s) })
		s.watchers.Store(maxWatchers - 1)
		client := ports.client()
		ctx, cancel := context.WithCancel(t.Context())
		first, err := client.WatchView(ctx, &ringmodv1.WatchViewRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.Recv(); err != nil {
			t.Error(err)
		}
		second, err := client.WatchView(t.Context(), &ringmodv1.WatchViewRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := second.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one too many: got %v", err)
		}
		cancel()
		within(t, time.Second, func() bool { return s.watchers.Load() == maxWatchers-1 })
	})
}
