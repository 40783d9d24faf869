package signature

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxFile bounds the policy file and each file of keys or certificates, in bytes.
const maxFile = 1 << 20

// readFile reads a file of the operator, as it is now.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, err
}

// blobs collects what the fields xPath, xPaths, xData and xDatas of o hold: files,
// and base64. Each comes with the place in the policy where it stands.
func (o *object) blobs(name string, lists bool) ([]placed, error) {
	var found []placed
	var used string
	for _, suffix := range []string{"Path", "Paths", "Data", "Datas"} {
		key := name + suffix
		many := suffix == "Paths" || suffix == "Datas"
		if many && !lists || o.take(key) == nil {
			continue
		}
		if used != "" {
			return nil, at(o.sub(key), "cannot be there beside %s: give one of them", used)
		}
		used = key
		values, err := o.values(key, many)
		if err != nil {
			return nil, err
		}
		for i, v := range values {
			p := placed{path: o.sub(key)}
			if many {
				p.path = fmt.Sprintf("%s[%d]", p.path, i)
			}
			if suffix == "Path" || suffix == "Paths" {
				p.data, err = keyFile(v)
			} else if p.data, err = base64.StdEncoding.DecodeString(v); err != nil {
				err = fmt.Errorf("must be base64 of a PEM file: %w", err)
			}
			if err != nil {
				return nil, at(p.path, "%w", err)
			}
			found = append(found, p)
		}
	}
	return found, nil
}

// publicKeys is the keys that the fields of blobs hold.
func (o *object) publicKeys(name string) (all []string, err error) {
	found, err := o.blobs(name, true)
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		all = append(all, key)
	}
	return all, nil
}

func (o *object) values(key string, many bool) ([]string, error) {
	if many {
		return o.texts(key)
	}
	v, err := o.text(key)
	return []string{v}, err
}

func keyFile(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("is %q, must be an absolute path", shorten(path))
	}
	return readFile(path)
}

// placed is the content of a file or field.
type placed struct {
	path string
	data []byte
}

// key is the one public key of a PEM file, as PEM of its PKIX form.
func (p placed) key() (string, error) {
	b, rest := pem.Decode(p.data)
	if b == nil || len(bytes.TrimSpace(rest)) > 0 {
		return "", at(p.path, "must have one public key in PEM (-----BEGIN PUBLIC KEY-----), and nothing else")
	}
	var key any
	var err error
	switch b.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(b.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(b.Bytes)
	default:
		return "", at(p.path, "has a %s in PEM, must be a PUBLIC KEY", shorten(b.Type))
	}
	if err != nil {
		return "", at(p.path, "%w", err)
	}
	switch key.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
	default:
		return "", at(p.path, "has a key of type %T, must be ECDSA, RSA or Ed25519", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", at(p.path, "%w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// authorities are the CA certificates of a PEM file, at least one.
func (p placed) authorities() ([]string, error) {
	var found []string
	for rest := bytes.TrimSpace(p.data); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil || b.Type != "CERTIFICATE" {
			return nil, at(p.path, "must have certificates in PEM (-----BEGIN CERTIFICATE-----), and nothing else")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, at(p.path, "%w", err)
		}
		if !c.IsCA {
			return nil, at(p.path, "has the certificate of %q, which is not that of a CA", shorten(c.Subject.String()))
		}
		found = append(found, string(pem.EncodeToMemory(b)))
	}
	if len(found) == 0 {
		return nil, at(p.path, "has no certificate")
	}
	return found, nil
}
