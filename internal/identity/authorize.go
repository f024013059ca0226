package identity

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

var (
	all       = []Role{Node, Gateway, Operator}
	members   = []Role{Node, Gateway}
	nodes     = []Role{Node}
	operators = []Role{Operator}
	relays    = []Role{Node, Operator} // nodes pass on what operators ask of another one
)

// callers says who may call each method.
var callers = map[string][]Role{
	ringmodv1.CacheService_Get_FullMethodName:      all,
	ringmodv1.CacheService_GetSmall_FullMethodName: all,
	ringmodv1.CacheService_Stat_FullMethodName:     all,

	ringmodv1.ClusterService_GetView_FullMethodName:   all,
	ringmodv1.ClusterService_WatchView_FullMethodName: all,

	ringmodv1.PeerService_Announce_FullMethodName:   members,
	ringmodv1.PeerService_Digests_FullMethodName:    nodes,
	ringmodv1.PeerService_Keys_FullMethodName:       nodes,
	ringmodv1.PeerService_Tombstones_FullMethodName: nodes,
	ringmodv1.PeerService_Outdate_FullMethodName:    nodes,
	ringmodv1.PeerService_Hosts_FullMethodName:      nodes,

	// Status and Explain change nothing, and members pass them on.
	ringmodv1.AdminService_Status_FullMethodName:   all,
	ringmodv1.AdminService_Explain_FullMethodName:  all,
	ringmodv1.AdminService_Drain_FullMethodName:    relays,
	ringmodv1.AdminService_SetState_FullMethodName: operators,
	ringmodv1.AdminService_Purge_FullMethodName:    operators,
	ringmodv1.AdminService_Scrub_FullMethodName:    {Node, Operator}, // nodes pass it on
	ringmodv1.AdminService_Audit_FullMethodName:    {Node, Operator}, // nodes pass it on
	ringmodv1.AdminService_Import_FullMethodName:   operators,
	ringmodv1.AdminService_SetSpec_FullMethodName:  operators,
	ringmodv1.AdminService_Refresh_FullMethodName:  {Gateway, Node, Operator}, // gateways are told of pushes

	healthpb.Health_Check_FullMethodName: all,
	healthpb.Health_List_FullMethodName:  all,
	healthpb.Health_Watch_FullMethodName: all,

	reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName:      all,
	reflectionalphapb.ServerReflection_ServerReflectionInfo_FullMethodName: all,
}

// authorize returns the error that refuses a call, or nil.
func authorize(ctx context.Context, method string) error {
	who, ok := Caller(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no certificate")
	}
	if !slices.Contains(callers[method], who.Role) {
		return status.Errorf(codes.PermissionDenied, "%s may not call %s", who, method)
	}
	return nil
}

// ServerOptions returns credentials and interceptors of a server of a member: who may
// not call a method is refused with PermissionDenied. On nil there are none.
func (c *Credentials) ServerOptions() []grpc.ServerOption {
	if c == nil {
		return nil
	}
	return []grpc.ServerOption{
		grpc.Creds(c.Server()),
		grpc.ChainUnaryInterceptor(authorizeUnary),
		grpc.ChainStreamInterceptor(authorizeStream),
	}
}

func authorizeUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := authorize(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func authorizeStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := authorize(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}
