package admin

import (
	"context"

	"golang.org/x/mod/module"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/node/purge"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Purger removes objects from all nodes; *purge.Keeper does.
type Purger interface {
	// Purge writes purges, or lifts them, and tells all nodes. Errors are *cache.Error.
	Purge(ctx context.Context, names []purge.Name, lift bool, text string) (*ringmodv1.PurgeResponse, error)
	// Explain returns the tombstone that keeps a target away; nil where there is none.
	Explain(name string) *ringmodv1.Tombstone
}

// Purge implements AdminService.
func (s *service) Purge(ctx context.Context, req *ringmodv1.PurgeRequest) (_ *ringmodv1.PurgeResponse, err error) {
	defer s.end(ctx, "Purge", &err)
	if s.cfg.Purger == nil {
		return nil, status.Error(codes.Unimplemented, "this member holds nothing that could be purged")
	}
	names, err := purged(req)
	if err != nil {
		return nil, &cache.Error{Reason: cache.Malformed, Text: err.Error(), Err: err}
	}
	if len(req.GetText()) > purge.MaxText {
		return nil, &cache.Error{Reason: cache.Malformed, Text: "the reason is too long: at most 512 bytes"}
	}
	return s.cfg.Purger.Purge(ctx, names, req.GetLift(), req.GetText())
}

// purged returns what a request names.
func purged(req *ringmodv1.PurgeRequest) ([]purge.Name, error) {
	var name purge.Name
	switch s := req.GetSubject().(type) {
	case *ringmodv1.PurgeRequest_Module:
		return purge.Names(module.Version{Path: s.Module.GetPath(), Version: s.Module.GetVersion()})
	case *ringmodv1.PurgeRequest_Target:
		name = purge.Name{Name: s.Target}
	case *ringmodv1.PurgeRequest_Prefix:
		name = purge.Name{Name: s.Prefix, Prefix: true}
	default:
		return nil, errNoSubject
	}
	return []purge.Name{name}, name.Check()
}
