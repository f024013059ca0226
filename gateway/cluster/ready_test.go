package cluster_test

import (
	"testing"

	"github.com/ringmod/ringmod/ring"
)

// A node that joins is not asked yet, so a gateway that knows no other is not ready.
func TestReadyWhileANodeJoins(t *testing.T) {
	t.Parallel()
	n := ring.Member{ID: "n1", Region: "eu", State: ring.Joining, Role: ring.Node, Weight: 1, Addr: "n1:1"}
	err := newCluster(t, newNodesOf(t, n), nil).Ready()
	if want := "no node of cluster test can be reached (0 known, 0 up)"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}
