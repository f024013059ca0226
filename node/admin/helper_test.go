package admin_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/admin"
	"github.com/ringmod/ringmod/node/member"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// mood is how a fake member behaves towards those who call it.
type mood int

const (
	well    mood = iota
	hanging      // takes calls and never answers
	dead         // refuses connections
	unknown      // Conn has no connection to offer
	lying        // answers as somebody else, about something else
)

// cluster is members that reach each other over gRPC in memory. All have the same
// view.
type cluster struct {
	t       testing.TB
	entries []ring.Member
	view    *ring.View
	moods   map[string]mood
	down    []string // as gossip sees it
	conns   map[string]*grpc.ClientConn
	purger  admin.Purger
	orders  map[string]*refresh.Orders               // by id
	holds   map[string]map[string]*ringmodv1.Holding // by id, by target

	auditors map[string]*auditor // by id
	filler   filler              // of all
}

func entry(id, region, zone string) ring.Member {
	return ring.Member{
		ID: id, Boot: "0000000000000001", Epoch: 1, State: ring.Active, Role: ring.Node,
		Region: region, Zone: zone, Weight: 1, Addr: id + ":8082", Spec: ring.DefaultSpec().Hash(),
	}
}

func newCluster(t testing.TB, entries ...ring.Member) *cluster {
	t.Helper()
	c := &cluster{
		t: t, entries: entries, moods: map[string]mood{}, conns: map[string]*grpc.ClientConn{},
		holds: map[string]map[string]*ringmodv1.Holding{}, auditors: map[string]*auditor{},
	}
	var table ring.Members
	for _, e := range entries {
		if _, err := table.Put(e); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if c.view, err = ring.NewView(ring.DefaultSpec(), &table); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		c.serve(e)
	}
	return c
}

// serve starts a member. The moods count when it is called.
func (c *cluster) serve(e ring.Member) {
	listener := bufconn.Listen(64 << 10)
	server := grpc.NewServer(append(wire.ServerOptions(new(wire.Pool)), grpc.UnaryInterceptor(c.behave(e.ID)))...)
	admin.Register(server, c.config(e.ID))
	if e.Role == ring.Node {
		node.Register(server, node.ServiceConfig{Holder: holder{c, e.ID}})
		node.RegisterPeer(server, node.PeerParts{Outdater: c.refreshes(e.ID)})
	}
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///"+e.ID, append(wire.DialOptions(new(wire.Pool), wire.Near),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if c.moods[e.ID] == dead {
				return nil, errors.New("connection refused")
			}
			return listener.DialContext(ctx)
		}))...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.conns[e.ID] = conn
	c.t.Cleanup(func() {
		conn.Close()
		server.Stop()
	})
}

func (c *cluster) behave(id string) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if c.moods[id] == hanging {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		resp, err := next(ctx, req)
		if c.moods[id] == lying && err == nil {
			switch r := resp.(type) {
			case *ringmodv1.StatusResponse:
				r.MemberId = "somebody"
			case *ringmodv1.StatResponse:
				r.Holdings = append(r.GetHoldings(), nil)
			}
		}
		return resp, err
	}
}

func (c *cluster) config(id string) admin.Config {
	cfg := admin.Config{
		Purger: c.purger, Refreshes: c.refreshes(id),
		Self: id, Membership: c, Conns: caller{c, id},
		Reporter: &admin.Local{Version: "v1-" + id, Started: time.Now(), View: c.View, Fills: func() int { return len(id) }},
	}
	if _, ok := c.view.Find(id); ok {
		cfg.Holder = holder{c, id}
	}
	if a := c.auditors[id]; a != nil {
		cfg.Auditor = a
	}
	if c.filler != nil {
		cfg.Filler = c.filler
	}
	return cfg
}

// operator returns a client of the member.
func (c *cluster) operator(id string) ringmodv1.AdminServiceClient {
	return ringmodv1.NewAdminServiceClient(c.conns[id])
}

// hold gives a node something to say about a target.
func (c *cluster) hold(id string, h *ringmodv1.Holding) {
	if c.holds[id] == nil {
		c.holds[id] = map[string]*ringmodv1.Holding{}
	}
	c.holds[id][h.GetTarget()] = h
}

func (c *cluster) View() *ring.View { return c.view }

func (c *cluster) Snapshot() *ringmodv1.View {
	v := &ringmodv1.View{Cluster: "test", ViewDigest: c.view.Digest(), ViewSeq: c.view.Seq()}
	for _, e := range c.entries {
		v.Members = append(v.Members, &ringmodv1.Member{
			Id: e.ID, Role: ringmodv1.Role(e.Role), State: ringmodv1.MemberState(e.State),
			Region: e.Region, Zone: e.Zone, GrpcAddress: e.Addr,
		})
	}
	slices.SortFunc(v.GetMembers(), func(a, b *ringmodv1.Member) int { return strings.Compare(a.GetId(), b.GetId()) })
	return v
}

func (c *cluster) Members() []member.Status {
	var all []member.Status
	for _, e := range c.entries {
		all = append(all, member.Status{
			Entry: e, Up: !slices.Contains(c.down, e.ID), Since: time.Now().Add(-time.Minute),
			RTT: time.Duration(len(e.ID)) * time.Millisecond,
		})
	}
	return all
}

// Forget is as that of member.Membership, for members that cannot be told of it.
func (c *cluster) Forget(_ context.Context, id string, force bool) error {
	i := slices.IndexFunc(c.entries, func(e ring.Member) bool { return e.ID == id })
	switch {
	case i < 0:
		return member.ErrUnknown
	case !force && !slices.Contains(c.down, id):
		return member.ErrUp
	}
	c.entries[i].State = ring.Forgotten
	return nil
}

// caller is a member's connections. It objects to calls that must not be.
type caller struct {
	c    *cluster
	self string
}

func (k caller) Conn(id string) (grpc.ClientConnInterface, error) {
	conn := k.c.conns[id]
	switch {
	case id == k.self:
		k.c.t.Errorf("%s calls itself", id)
	case conn == nil:
		k.c.t.Errorf("%s calls %s, which is no member", k.self, id)
	case k.c.moods[id] != unknown:
		return conn, nil
	}
	return nil, errors.New("no connection")
}

// holder is a node's disk.
type holder struct {
	c  *cluster
	id string
}

func (h holder) Holding(_ context.Context, t target.Target) (*ringmodv1.Holding, error) {
	if known := h.c.holds[h.id][t.String()]; known != nil {
		return known, nil
	}
	if strings.Contains(t.Path, "/unreadable") {
		return nil, &cache.Error{Reason: cache.Internal, Text: "the cache cannot read its disk"}
	}
	return &ringmodv1.Holding{Target: t.String()}, nil
}

func seconds(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }
