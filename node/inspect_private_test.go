package node_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/ringmod/ringmod/internal/cache"
	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/node"
	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/sumdb"
	"github.com/ringmod/ringmod/node/verify"
)

// membersFunc is a way to lookups that is a function.
type membersFunc func(ctx context.Context, t target.Target) ([]byte, error)

func (f membersFunc) Fetch(ctx context.Context, t target.Target) ([]byte, error) { return f(ctx, t) }

// Nobody hears of a private module, not even other members.
func TestInspectionKeepsPrivateNamesHere(t *testing.T) {
	t.Parallel()
	mem := store.NewMem()
	zip, _ := zipOf(t, 0)
	records, _ := newRecords(t, mem, node.NewWriteBehind(mem, nil), zip)
	asked := 0
	files := &node.ChecksumFiles{Store: mem, Documents: mem, Writes: node.NewWriteBehind(mem, nil)}
	db, err := sumdb.New(sumdb.Config{Spec: records.spec, Remote: records, Storage: files, Heads: files, Members: membersFunc(
		func(context.Context, target.Target) ([]byte, error) {
			asked++
			return nil, &cache.Error{Reason: cache.NotCached}
		},
	)})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(modBody), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		private  string
		asked    int
		verified bool
	}{{"example.com/*", 0, false}, {"corp.example", 1, true}} {
		i := node.NewInspector(verify.New(1))
		i.Use([]*sumdb.DB{db}, test.private)
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := i.Inspect(modName, f)
		f.Close()
		if err != nil || p.H1 == "" || p.Verified != test.verified || asked != test.asked {
			t.Errorf("private %s: %+v, %v, asked %d times, want %d", test.private, p, err, asked, test.asked)
		}
	}
}
