package admin_test

import (
	"context"
	"slices"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/refresh"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node/admin"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

// upstreamOf is what upstream says of a few targets.
type upstreamOf map[string]string

func (u upstreamOf) Renew(_ context.Context, t target.Target, number uint64) (body []byte, changed bool, err error) {
	said, ok := u[t.String()]
	switch {
	case number == 0:
		panic("no order")
	case !ok && t.Kind == target.Latest:
		return nil, false, nil
	case !ok:
		return nil, false, &cache.Error{Reason: cache.NotFound, Source: "upstream", Text: "no such thing"}
	}
	return []byte(said), true, nil
}

// refreshes are those of a member: n1 is followed by g1, n2 by g2.
func (c *cluster) refreshes(id string) *admin.Refreshes {
	if c.orders[id] == nil {
		if c.orders == nil {
			c.orders = map[string]*refresh.Orders{}
		}
		c.orders[id] = refresh.New()
	}
	return &admin.Refreshes{
		Orders: c.orders[id], Renewer: upstreamOf{"example.com/m/@v/list": "v1.0.0\nv1.1.0\n"},
		Followers: func() []string { return []string{"g" + id[1:]} },
	}
}

func TestRefresh(t *testing.T) {
	t.Parallel()
	gateways := []ring.Member{entry("g1", "r", ""), entry("g2", "r", ""), entry("g3", "r", "")}
	for i := range gateways {
		gateways[i].Role, gateways[i].Addr = ring.Gateway, ""
	}
	c := newCluster(t, append(gateways, entry("n1", "r", ""), entry("n2", "r", ""), entry("n3", "r", ""))...)
	c.moods["n3"] = dead
	resp, err := c.operator("n1").Refresh(t.Context(), &ringmodv1.RefreshRequest{
		Subject: &ringmodv1.RefreshRequest_Module{Module: &ringmodv1.ModuleVersion{Path: "example.com/m", Version: "v1.2.0"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"g1", "g2", "n1", "n2"}; !slices.Equal(resp.GetConfirmed(), want) {
		t.Errorf("told %q, want %q", resp.GetConfirmed(), want)
	}
	if want := []string{"g3", "n3"}; !slices.Equal(resp.GetUnconfirmed(), want) {
		t.Errorf("not told %q, want %q", resp.GetUnconfirmed(), want)
	}
	objects := resp.GetObjects()
	if len(objects) != 2 || objects[0].GetVersions() != 2 || !objects[0].GetChanged() || objects[1].GetError().GetReason() != ringmodv1.Reason_REASON_NOT_FOUND {
		t.Errorf("got %v", objects)
	}
	one, two := c.orders["n1"].Latest("example.com/m"), c.orders["n2"].Latest("example.com/m")
	if one.Number == 0 || one.Number != two.Number || c.orders["n2"].Latest("example.com/m/v2").Number != 0 {
		t.Errorf("orders are %+v and %+v", one, two)
	}
	if _, err := c.operator("n1").Refresh(t.Context(), &ringmodv1.RefreshRequest{Subject: &ringmodv1.RefreshRequest_Prefix{Prefix: "a b"}}); err == nil {
		t.Error("what is no path is taken")
	}
}
