package node

import (
	"context"

	"google.golang.org/grpc"

	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Announcer is told of objects; *copies.Keeper is one.
type Announcer interface {
	Announce(ctx context.Context, req *ringmodv1.AnnounceRequest) (*ringmodv1.AnnounceResponse, error)
}

// Comparer tells what is here; *antientropy.Comparer does.
type Comparer interface {
	Digests(ctx context.Context, req *ringmodv1.DigestsRequest) (*ringmodv1.DigestsResponse, error)
	Keys(req *ringmodv1.KeysRequest, stream grpc.ServerStreamingServer[ringmodv1.KeysResponse]) error
}

// Purger tells and is told what is purged; *purge.Keeper does.
type Purger interface {
	Tombstones(req *ringmodv1.TombstonesRequest, stream grpc.ServerStreamingServer[ringmodv1.TombstonesResponse]) error
}

// Outdater is told of orders to refresh. Its errors are a *cache.Error.
type Outdater interface {
	Outdate(ctx context.Context, req *ringmodv1.OutdateRequest) (*ringmodv1.OutdateResponse, error)
}

// Visitor tells and is told how upstream hosts do; *polite.Keeper does.
type Visitor interface {
	Exchange(ctx context.Context, req *ringmodv1.HostsRequest) (*ringmodv1.HostsResponse, error)
}

// PeerParts are what PeerService is put together from. What is nil stays
// unimplemented.
type PeerParts struct {
	Announcer Announcer
	Comparer  Comparer
	Purger    Purger
	Outdater  Outdater
	Visitor   Visitor
}

// RegisterPeer offers PeerService on server. Who may call is for the server's
// interceptors to say.
func RegisterPeer(server grpc.ServiceRegistrar, parts PeerParts) {
	ringmodv1.RegisterPeerServiceServer(server, &peerService{parts: parts})
}

type peerService struct {
	ringmodv1.UnimplementedPeerServiceServer

	parts PeerParts
}

// Announce implements PeerService.
func (s *peerService) Announce(ctx context.Context, req *ringmodv1.AnnounceRequest) (*ringmodv1.AnnounceResponse, error) {
	if s.parts.Announcer == nil {
		return s.UnimplementedPeerServiceServer.Announce(ctx, req)
	}
	return s.parts.Announcer.Announce(ctx, req)
}

// Digests implements PeerService.
func (s *peerService) Digests(ctx context.Context, req *ringmodv1.DigestsRequest) (*ringmodv1.DigestsResponse, error) {
	if s.parts.Comparer == nil {
		return s.UnimplementedPeerServiceServer.Digests(ctx, req)
	}
	return s.parts.Comparer.Digests(ctx, req)
}

// Keys implements PeerService.
func (s *peerService) Keys(req *ringmodv1.KeysRequest, stream grpc.ServerStreamingServer[ringmodv1.KeysResponse]) error {
	if s.parts.Comparer == nil {
		return s.UnimplementedPeerServiceServer.Keys(req, stream)
	}
	return s.parts.Comparer.Keys(req, stream)
}

// Tombstones implements PeerService.
func (s *peerService) Tombstones(req *ringmodv1.TombstonesRequest, stream grpc.ServerStreamingServer[ringmodv1.TombstonesResponse]) error {
	if s.parts.Purger == nil {
		return s.UnimplementedPeerServiceServer.Tombstones(req, stream)
	}
	return s.parts.Purger.Tombstones(req, stream)
}

// Outdate implements PeerService.
func (s *peerService) Outdate(ctx context.Context, req *ringmodv1.OutdateRequest) (*ringmodv1.OutdateResponse, error) {
	if s.parts.Outdater == nil {
		return s.UnimplementedPeerServiceServer.Outdate(ctx, req)
	}
	return s.parts.Outdater.Outdate(ctx, req)
}

// Hosts implements PeerService.
func (s *peerService) Hosts(ctx context.Context, req *ringmodv1.HostsRequest) (*ringmodv1.HostsResponse, error) {
	if s.parts.Visitor == nil {
		return s.UnimplementedPeerServiceServer.Hosts(ctx, req)
	}
	return s.parts.Visitor.Exchange(ctx, req)
}
