package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const lifetime = 365 * 24 * time.Hour // the cluster itself lives for minutes

// pki fills a folder with the keys and certificates of one cluster, so that
// starting one needs no Python package and no openssl.
func pki() {
	if len(os.Args) != 2 {
		fail(errors.New("usage: pki FOLDER"))
	}
	if err := writePKI(os.Args[1]); err != nil {
		fail(err)
	}
}

func writePKI(folder string) error {
	serial := int64(0)
	issue := func(name string, template, parent *x509.Certificate, signer crypto.Signer) (crypto.Signer, error) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if signer == nil {
			signer = private
		}
		serial++
		template.SerialNumber = big.NewInt(serial)
		template.NotBefore = time.Now().Add(-time.Hour)
		template.NotAfter = time.Now().Add(lifetime)
		template.BasicConstraintsValid = true
		encoded, err := x509.CreateCertificate(rand.Reader, template, parent, private.Public(), signer)
		if err != nil {
			return nil, err
		}
		if err := writePEM(filepath.Join(folder, name+".crt"), "CERTIFICATE", encoded); err != nil {
			return nil, err
		}
		return private, writeKey(filepath.Join(folder, name+".key"), private)
	}

	authority := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "test cluster CA"},
		IsCA:     true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	signer, err := issue("ca", authority, authority, nil)
	if err != nil {
		return err
	}
	// Read back for the key identifier, which strict verifiers want in the leaves.
	if authority, err = readCertificate(filepath.Join(folder, "ca.crt")); err != nil {
		return err
	}
	for name, template := range map[string]*x509.Certificate{
		"apiserver": {
			Subject:     pkix.Name{CommonName: "kube-apiserver"},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 0, 0, 1)},
		},
		// For etcd as a server and for its only client, kube-apiserver: whoever
		// could write to etcd would be admin, and exec runs commands.
		"etcd": {
			Subject:     pkix.Name{CommonName: "etcd"},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		},
		"kubelet": {
			Subject:     pkix.Name{CommonName: "system:node:node-1", Organization: []string{"system:nodes"}},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		},
		"kubelet-client": {
			Subject:     pkix.Name{CommonName: "kube-apiserver-kubelet-client"},
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		},
	} {
		if _, err := issue(name, template, authority, signer); err != nil {
			return err
		}
	}

	// ServiceAccount tokens: RSA, because every verifier of OpenID Connect
	// tokens must accept RS256.
	tokens, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	return writeKey(filepath.Join(folder, "serviceaccounts.key"), tokens)
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	return x509.ParseCertificate(block.Bytes)
}

func writeKey(path string, private crypto.Signer) error {
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", encoded)
}

func writePEM(path, kind string, encoded []byte) error {
	text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: encoded})
	return os.WriteFile(path, text, 0o600)
}
