package copies

import "github.com/ringmod/ringmod/node/store"

// Store returns Config.Store, of which the Keeper hears what is committed.
func (k *Keeper) Store() store.Store { return watchedStore{k.cfg.Store, k} }

// Documents returns Config.Documents, of which the Keeper hears what is put.
func (k *Keeper) Documents() store.Documents { return watchedDocuments{k.cfg.Documents, k} }

type watchedStore struct {
	store.Store

	keeper *Keeper
}

// Create implements store.Store.
func (s watchedStore) Create(name string) (store.Pending, error) {
	p, err := s.Store.Create(name)
	if err != nil {
		return nil, err
	}
	return watchedPending{p, s.keeper, name}, nil
}

type watchedPending struct {
	store.Pending

	keeper *Keeper
	name   string
}

// Commit implements store.Pending.
func (p watchedPending) Commit(proof store.Proof) (store.Entry, error) {
	entry, err := p.Pending.Commit(proof)
	if err == nil {
		p.keeper.stored(p.name)
	}
	return entry, err
}

type watchedDocuments struct {
	store.Documents

	keeper *Keeper
}

// PutDocument implements store.Documents.
func (d watchedDocuments) PutDocument(name string, doc store.Document) error {
	err := d.Documents.PutDocument(name, doc)
	if err == nil {
		d.keeper.stored(name)
	}
	return err
}
