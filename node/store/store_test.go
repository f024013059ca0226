package store_test

import (
	"testing"

	"github.com/ringmod/ringmod/node/store"
	"github.com/ringmod/ringmod/node/store/storetest"
)

func TestMem(t *testing.T) {
	t.Parallel()
	storetest.Test(t, func(*testing.T) (store.Store, store.Documents) {
		m := store.NewMem()
		m.Place = storetest.Place
		return m, m
	})
}

func TestDisk(t *testing.T) {
	t.Parallel()
	storetest.Test(t, func(t *testing.T) (store.Store, store.Documents) {
		t.Helper()
		d, err := store.OpenDisk(store.DiskConfig{Dir: t.TempDir(), Place: storetest.Place})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		return d, d
	})
}
