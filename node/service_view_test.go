package node_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/internal/wire"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store/storetest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
)

// Every answer carries our view, and a caller with another one is reported, but
// answered all the same.
func TestServiceViews(t *testing.T) {
	t.Parallel()
	var seen []string
	n, mem := newNode(t, node.Config{Upstream: newScripted(nil)})
	cc := serveCache(t, node.ServiceConfig{
		Cache: n, Holder: n,
		View: func() (digest, seq uint64) { return 7, 3 },
		OnView: func(caller string, digest, seq uint64) {
			seen = append(seen, fmt.Sprintf("%s %d/%d", caller, digest, seq))
		},
		Caller: func(context.Context) string { return "gw1" },
	})
	zip := fileOf(t, modPath, modVers, target.Zip)
	storetest.Put(t, mem, zip.String(), "bytes", "h1:x")
	client := ringmodv1.NewCacheServiceClient(cc)
	for _, view := range [][2]uint64{{0, 0}, {7, 2}, {8, 2}, {0, 1}} {
		var h *ringmodv1.Header
		o := wire.Options{
			Template: &ringmodv1.GetRequest{ViewDigest: view[0], ViewSeq: view[1]},
			OnHeader: func(got *ringmodv1.Header) { h = got },
		}
		_, obj, err := fetchWire(t.Context(), cc, cache.Request{Target: zip}, o)
		if err != nil || h.GetViewDigest() != 7 || h.GetViewSeq() != 3 || obj.H1 != "h1:x" || obj.Verified {
			t.Errorf("Get: %v, %v, %+v", err, h, obj)
		}
		resp, err := client.Stat(t.Context(), &ringmodv1.StatRequest{Targets: []string{zip.String()}, ViewDigest: view[0], ViewSeq: view[1]})
		if err != nil || resp.GetViewDigest() != 7 || resp.GetViewSeq() != 3 {
			t.Errorf("Stat: %v, %v", resp, err)
		}
	}
	if want := []string{"gw1 8/2", "gw1 8/2", "gw1 0/1", "gw1 0/1"}; !slices.Equal(seen, want) {
		t.Errorf("reported %q, want %q", seen, want)
	}
}

// Who is stopping is as good as away: whoever asks takes the next rank, and does
// not wait as for one that is busy.
func TestServiceStopping(t *testing.T) {
	t.Parallel()
	n, mem := newNode(t, node.Config{Upstream: newScripted(nil)})
	cc := serveCache(t, node.ServiceConfig{Cache: n})
	held := fileOf(t, modPath, modVers, target.Zip)
	storetest.Put(t, mem, held.String(), "bytes", "")
	stopNode(n)
	for _, name := range []string{modPath + "/@v/v1.9.0.mod", modPath + "/@v/list"} {
		_, _, err := fetchWire(t.Context(), cc, cache.Request{Target: mustParse(t, name)}, wire.Options{})
		if e, ok := errors.AsType[*wire.PeerError](err); !ok || e.Code != codes.Unavailable {
			t.Errorf("%s: %v, want a *wire.PeerError with Unavailable", name, err)
		}
	}
	if got, _, err := fetchWire(t.Context(), cc, cache.Request{Target: held}, wire.Options{}); err != nil || string(got) != "bytes" {
		t.Errorf("what is held: %q, %v", got, err)
	}
}
