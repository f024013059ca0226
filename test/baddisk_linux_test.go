package test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ringmod/ringmod/node/upstream/upstreamtest"
	"github.com/ringmod/ringmod/test/baddisk"
	"github.com/ringmod/ringmod/test/harness"
)

// TestDiskFailsToWrite gives a node a disk that answers each write with EIO for a while.
// Clients see nothing of it; people do.
func TestDiskFailsToWrite(t *testing.T) {
	t.Parallel()
	v := newVolumes(t, 12)
	d := baddisk.New(t)
	p := harness.Serve(t, "--data-dir", d.Dir, "--sumdb", "off", "--upstream", v.fake.URL)
	for i := range v.count / 2 {
		v.read(t, p, i)
	}
	d.FailWrites(syscall.EIO)
	v.readAll(t, p)
	wantReadOnly(t, p, true)
	if _, status, _ := harness.Run(t, nil, "status", "--addr", p.GRPC); !strings.Contains(status, "fails (") || !strings.Contains(status, "look at the system's log") {
		t.Errorf("status does not say what is wrong:\n%s", status)
	}
	v.readAll(t, p)
	d.Heal()
	wantReadOnly(t, p, false)
	v.readAll(t, p)
	v.fake.Reset()
	v.readAll(t, p)
	if got := v.fake.Count(".zip"); got != 0 {
		t.Errorf("%d zips were fetched again after the disk has recovered", got)
	}
}

// TestDiskDies lets the disk of one node of three fail or hang altogether, under clients
// that read what the others hold, too. They see nothing of it, nor does upstream.
func TestDiskDies(t *testing.T) {
	t.Parallel()
	for name, ill := range map[string]func(*baddisk.Disk){
		"fails": func(d *baddisk.Disk) { d.Fail(syscall.EIO) },
		"hangs": (*baddisk.Disk).Hang,
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name == "hangs" {
				t.Skip("takes most of a minute; node/store has a disk that hangs in virtual time")
			}
			t.Parallel()
			d := baddisk.New(t)
			fake := upstreamtest.New(t)
			c := harness.NewCluster(t, "--upstream", fake.URL)
			n1 := c.StartNode(harness.Spec{Name: "n1", Flags: []string{"--data-dir", d.Dir}})
			c.StartNode(harness.Spec{Name: "n2"})
			c.StartNode(harness.Spec{Name: "n3"})
			gateway := c.StartGateway(harness.Spec{Name: "g1"})
			c.WaitConverged()
			all := libraryOf(fake, modules(t, fake, "m", 20, 100<<10))
			readTogether(t, gateway, all)
			eventually(t, "everything to have its copies", func() bool {
				held, lag := 0.0, 0.0
				for _, p := range c.Running() {
					if p.GRPC != "" {
						held += p.Metric("ringmod_disk_objects")
						lag += p.Metric("ringmod_replication_lag_seconds")
					}
				}
				return held >= float64(2*len(all)) && lag == 0
			})
			fake.Reset()

			clients := startLoad(t, 2, all.any(), gateway)
			ill(d)
			began := time.Now()
			wantServing(t, n1, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
			found := time.Since(began)
			t.Logf("NOT_SERVING after %v", found)
			_, status, _ := harness.Run(t, nil, "status", "--addr", c.Member("n2").GRPC)
			if !strings.Contains(status, "cannot be read (") || !strings.Contains(status, "n1 stores nothing new") {
				t.Errorf("status does not say what is wrong:\n%s", status)
			}
			d.Heal()
			wantServing(t, n1, grpc_health_v1.HealthCheckResponse_SERVING)
			clients.finish(t)
			clients.report(t, "requests", time.Time{}, time.Now(), nil)
			for _, r := range clients.requests {
				if name == "hangs" && r.took > found/2 {
					t.Errorf("%s took %v, as if nobody else had a copy", r.name, r.took)
				}
			}
			if got := fake.Requests(); len(got) != 0 {
				t.Errorf("%d requests to upstream, such as %q", len(got), got[0])
			}
			if got := n1.Metric("ringmod_scrub_repairs_total"); got != 0 {
				t.Errorf("%v copies were taken for bad", got)
			}
		})
	}
}

func wantServing(t *testing.T, p *harness.Process, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	conn := p.Conn()
	within(t, time.Minute, p.Name+" to be "+want.String(), func() error {
		r, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err == nil && r.GetStatus() != want {
			err = fmt.Errorf("it is %v", r.GetStatus())
		}
		return err
	})
}
