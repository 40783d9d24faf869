package testutil

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"testing"
)

// KeyData is a public key as keyData of a signature policy has it: PEM, in base64.
func KeyData(t testing.TB, key crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}
