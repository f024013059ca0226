package identity

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ringmod/ringmod/ring"
)

type empty = emptypb.Empty

// TestEveryMethodIsDecided calls each method that a member offers, as each role.
func TestEveryMethodIsDecided(t *testing.T) {
	t.Parallel()
	ca := newCA(t, "ringmod")
	server, l := serve(t, ca.member(t, "spiffe://ringmod/node/n1"))
	methods := make(map[string]grpc.MethodInfo)
	for service, info := range server.GetServiceInfo() {
		for _, m := range info.Methods {
			methods["/"+service+"/"+m.Name] = m
		}
	}
	for name := range callers {
		if _, ok := methods[name]; !ok {
			t.Errorf("%s is decided and does not exist", name)
		}
	}
	for _, role := range all {
		conn := dial(t, l, ca.member(t, Identity{"ringmod", role, "x"}.URI()).Client("n1", ring.Node))
		for name, m := range methods {
			decided, ok := callers[name]
			if !ok {
				t.Errorf("%s is not decided", name)
			}
			err := invoke(t, conn, name, m)
			if got, want := status.Code(err) != codes.PermissionDenied, slices.Contains(decided, role); got != want {
				t.Errorf("%s calls %s: allowed is %v (%v), want %v", role, name, got, err, want)
			}
		}
	}
}

// invoke calls a method with a message without fields and returns how it went until the
// first answer.
func invoke(t *testing.T, conn *grpc.ClientConn, name string, m grpc.MethodInfo) error {
	t.Helper()
	if !m.IsClientStream && !m.IsServerStream {
		return conn.Invoke(t.Context(), name, &empty{}, &empty{})
	}
	desc := &grpc.StreamDesc{ClientStreams: m.IsClientStream, ServerStreams: m.IsServerStream}
	stream, err := conn.NewStream(t.Context(), desc, name)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.SendMsg(&empty{}) // the status says more
	return stream.RecvMsg(&empty{})
}

func TestRights(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ method, roles string }{
		{"/ringmod.v1.CacheService/Get", "node gateway operator"},
		{"/ringmod.v1.CacheService/GetSmall", "node gateway operator"},
		{"/ringmod.v1.CacheService/Stat", "node gateway operator"},
		{"/ringmod.v1.PeerService/Announce", "node gateway"},
		{"/ringmod.v1.PeerService/Digests", "node"},
		{"/ringmod.v1.PeerService/Keys", "node"},
		{"/ringmod.v1.PeerService/Tombstones", "node"},
		{"/ringmod.v1.ClusterService/WatchView", "node gateway operator"},
		{"/ringmod.v1.AdminService/Status", "node gateway operator"},
		{"/ringmod.v1.AdminService/Drain", "node operator"},
		{"/ringmod.v1.AdminService/Purge", "operator"},
		{"/ringmod.v1.AdminService/Scrub", "node operator"},
		{"/ringmod.v1.AdminService/Audit", "node operator"},
		{"/grpc.health.v1.Health/Check", "node gateway operator"},
		{"/ringmod.v1.CacheService/Unknown", ""},
	} {
		var got []string
		for _, role := range callers[tt.method] {
			got = append(got, string(role))
		}
		if strings.Join(got, " ") != tt.roles {
			t.Errorf("%s: got %v, want %s", tt.method, got, tt.roles)
		}
	}
}
