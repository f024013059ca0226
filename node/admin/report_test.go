package admin_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ringmod/ringmod/node/admin"
	"github.com/ringmod/ringmod/node/antientropy"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/store/storetest"
	ringmodv1 "github.com/ringmod/ringmod/proto/ringmod/v1"
	"github.com/ringmod/ringmod/ring"
)

func TestLocalReport(t *testing.T) {
	t.Parallel()
	c := newCluster(t, entry("a", "eu", ""))
	mem := store.NewMem()
	storetest.Put(t, mem, "example.com/m/@v/v1.0.0.mod", "12345", "")
	streams := &admin.Streams{}
	local := &admin.Local{
		Version: "v1.2.3", Started: time.Now().Add(-time.Hour), View: c.View, Streams: streams,
		Usage: func() store.Usage {
			u := mem.Usage()
			u.Free, u.Quarantined, u.Limit = 1000, 3, 2000
			return u
		},
		Fills: func() int { return 2 }, Copies: waiting{}, Compared: lacking{},
	}
	want := &ringmodv1.MemberReport{
		Version: "v1.2.3", DiskLimit: 2000, DiskUsed: 5, DiskFree: 1000, Objects: 1, Streams: 1, Fills: 2, Quarantined: 3,
		Hints: 7, ReplicationLag: durationpb.New(time.Minute),
		PartitionsLacking: 4, BytesLacking: 100,
		ViewDigest: c.view.Digest(), ViewSeq: c.view.Seq(),
	}
	ask := func(method string, seen func()) {
		info := &grpc.StreamServerInfo{FullMethod: method}
		_ = streams.Intercept(nil, nil, info, func(any, grpc.ServerStream) error {
			seen()
			return context.Canceled
		})
	}
	check := func() {
		got := local.Report()
		if up := got.GetUptime().AsDuration(); up < time.Hour || up > 2*time.Hour {
			t.Errorf("uptime: got %v, want an hour", up)
		}
		if got.Uptime = nil; !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	ask(ringmodv1.CacheService_Get_FullMethodName, func() {
		ask(ringmodv1.ClusterService_WatchView_FullMethodName, check)
	})
	want.Streams = 0
	check()
}

type waiting struct{}

func (waiting) Hints() int         { return 7 }
func (waiting) Lag() time.Duration { return time.Minute }

type lacking struct{}

func (lacking) Progress() (antientropy.Progress, bool) {
	return antientropy.Progress{Missing: 100, Total: 1000, Partitions: 4}, true
}

func TestReportOfAGateway(t *testing.T) {
	t.Parallel()
	got := (&admin.Local{Version: "v1", Started: time.Now(), View: func() *ring.View { return nil }}).Report()
	got.Uptime = nil
	if want := (&ringmodv1.MemberReport{Version: "v1"}); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
