package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Document implements Documents.
func (d *Disk) Document(name string) (Document, error) {
	if _, err := d.path("open", name); err != nil {
		return Document{}, err
	}
	if d.purged(name) {
		return Document{}, notExist(name)
	}
	if err := d.Dead(); err != nil {
		return Document{}, err
	}
	var doc Document
	err := d.index.get(bucketDocuments, name, func(payload []byte) (err error) {
		doc, err = decodeDocument(payload)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = notExist(name)
	}
	return doc, err
}

// PutDocument implements Documents. The body of a list is written to its place
// below objects too, for those who use that folder by themselves.
func (d *Disk) PutDocument(name string, doc Document) error {
	path, err := d.path("create", name)
	if err != nil {
		return err
	}
	if err := d.ReadOnly(); err != nil {
		return fmt.Errorf("storing %s: %w", name, err)
	}
	release, err := d.names.lock(context.Background(), name)
	if err != nil {
		return err
	}
	defer release()
	if d.purged(name) {
		return fmt.Errorf("storing %s: %w", name, ErrPurged)
	}
	if err := d.index.put(bucketDocuments, name, encodeDocument(doc)); err != nil {
		return fmt.Errorf("storing %s: %w", name, d.trouble(err))
	}
	if derived(name) {
		if err := d.derive(path, doc.Body); err != nil {
			d.logger.Warn("list file not written", "key", name, "err", err)
		}
	}
	if d.purged(name) { // meanwhile
		return fmt.Errorf("storing %s: %w", name, d.refuse(name, path))
	}
	return nil
}

// derive replaces a file that nothing of ours reads; it may be lost in a crash.
func (d *Disk) derive(path string, body []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	f, err := d.createTemp()
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name()) //nolint:errcheck // else the next start does it
	}
	return err
}
