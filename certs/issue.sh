#!/bin/sh
# Issues a serving certificate for the webhook, and the CA that the API server trusts for it. See certs/README.md.
set -eu
umask 077

APP=gitlab-runner-webhook
# In the order in which they are put into place.
FILES='ca-bundle-mutating.yaml ca-bundle-validating.yaml ca.crt tls.crt tls.key'

usage() {
    cat <<EOF
Usage: issue.sh [options]

Writes into the output folder:
  ca.crt          what the API server is to trust: the new CA, then the one before it if that is still valid
  tls.crt         serving certificate
  tls.key         its private key
  ca-bundle-mutating.yaml, ca-bundle-validating.yaml
                  patches that put ca.crt into the two webhook configurations, for kubectl and for kustomize
The CA's own key is thrown away as soon as it has signed: nobody can issue another certificate with it.

Options:
  --out DIR         output folder (default: 'issued' beside this script)
  --force           replace certificates that are there
  --days N          lifetime of CA and certificate in days, 1 to 3650 (default: 90)
  --namespace NAME  namespace of the Service (default: $APP)
  --service NAME    name of the Service (default: $APP)
  --san VALUE       a further DNS name or IP address; may be given more than once
  --kubectl         also patch both webhook configurations and write Secret $APP-tls, with \$KUBECTL or kubectl
  --help            this text
EOF
}

fail() {
    printf 'issue.sh: %s\n' "$1" >&2
    exit 1
}

# A DNS label: what a Service and a Namespace may be called.
check_label() {
    case $2 in
        '' | -* | *- | *[!a-z0-9-]*) fail "$1 '$2' is not a name: expected lower-case letters, digits and '-'" ;;
    esac
    [ ${#2} -le 63 ] || fail "$1 '$2' is longer than 63 characters"
}

check_days() {
    case $1 in
        '' | 0* | ?????* | *[!0-9]*) ;;
        *) [ "$1" -gt 3650 ] || return 0 ;;
    esac
    fail "--days '$1': expected a whole number from 1 to 3650"
}

# Prints the value as openssl wants it. It goes into a configuration file: nothing that has a meaning there may pass.
san_entry() {
    case $1 in
        *[!A-Za-z0-9.:*-]* | '') fail "--san '$1' is neither a DNS name nor an IP address" ;;
        *:*) printf 'IP:%s' "$1" ;;
        *[!0-9.]*) printf 'DNS:%s' "$1" ;;
        *) printf 'IP:%s' "$1" ;;
    esac
}

out=
force=false
days=90
namespace=$APP
service=$APP
extra_sans=
use_kubectl=false

while [ $# -gt 0 ]; do
    case $1 in
        --out | --days | --namespace | --service | --san)
            [ $# -ge 2 ] || fail "$1 needs a value; see --help"
            case $1 in
                --out) out=$2 ;;
                --days) days=$2 ;;
                --namespace) namespace=$2 ;;
                --service) service=$2 ;;
                --san)
                    entry=$(san_entry "$2")
                    extra_sans=$extra_sans,$entry
                    ;;
            esac
            shift 2
            ;;
        --force) force=true && shift ;;
        --kubectl) use_kubectl=true && shift ;;
        --help | -h) usage && exit 0 ;;
        *) fail "unknown option '$1'; see --help" ;;
    esac
done

check_days "$days"
check_label --namespace "$namespace"
check_label --service "$service"
command -v openssl >/dev/null 2>&1 || fail "openssl is not on PATH; install OpenSSL 1.1 or later"
kubectl=${KUBECTL:-kubectl}
if $use_kubectl; then
    command -v "$kubectl" >/dev/null 2>&1 || fail "$kubectl is not on PATH; install kubectl, set KUBECTL, or leave --kubectl out"
fi

if [ -z "$out" ]; then
    out=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/issued
fi
case $out in
    /*) ;;
    *) out=$PWD/$out ;;
esac
mkdir -p -- "$out" 2>/dev/null || fail "cannot make folder '$out'"
[ -w "$out" ] || fail "folder '$out' is not writable"
if ! $force; then
    for file in $FILES; do
        [ ! -e "$out/$file" ] || fail "'$out/$file' is there already; --force replaces it, --out takes another folder"
    done
fi

# In the output folder, so that the moves at the end are renames.
work=$(mktemp -d "$out/.issue.XXXXXX") || fail "cannot write into folder '$out'"
trap 'rm -rf -- "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

quietly() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        fail "'$1 $2' failed: see above"
    }
}

# Two CAs of one name would be told apart by their key identifiers only.
id=$(openssl rand -hex 8)
cat >"$work/openssl.cnf" <<EOF
[req]
prompt = no
distinguished_name = ca_name
x509_extensions = ca
[ca_name]
CN = $APP serving CA $id
[ca]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[leaf_name]
CN = $service
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:$service.$namespace.svc,DNS:$service.$namespace.svc.cluster.local$extra_sans
EOF
sed 's/= ca_name$/= leaf_name/; /^x509_extensions/d' "$work/openssl.cnf" >"$work/leaf.cnf"

for owner in ca tls; do
    quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:named_curve \
        -out "$work/$owner.key"
done
quietly openssl req -x509 -new -sha256 -config "$work/openssl.cnf" -key "$work/ca.key" -days "$days" -out "$work/ca.crt"
quietly openssl req -new -sha256 -config "$work/leaf.cnf" -key "$work/tls.key" -out "$work/tls.csr"
quietly openssl x509 -req -sha256 -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$work/openssl.cnf" -extensions leaf -out "$work/tls.crt"
rm -f -- "$work/ca.key"
quietly openssl verify -purpose sslserver -CAfile "$work/ca.crt" "$work/tls.crt"

# Whoever still serves the certificate before this one stays trusted until it has been replaced everywhere.
if [ -s "$out/ca.crt" ] && openssl x509 -in "$out/ca.crt" -checkend 0 -noout >/dev/null 2>&1; then
    openssl x509 -in "$out/ca.crt" >>"$work/ca.crt"
fi

bundle=$(openssl base64 -A -in "$work/ca.crt")

# Kind of the webhook configuration, names of its webhooks.
ca_bundle() {
    cat <<EOF
# Public data: the CA that the API server trusts for the webhook. Made by certs/issue.sh.
apiVersion: admissionregistration.k8s.io/v1
kind: $1
metadata:
  name: $APP
webhooks:
EOF
    shift
    for name in "$@"; do
        cat <<EOF
  - name: $name.$APP
    clientConfig:
      caBundle: $bundle
EOF
    done
}
ca_bundle MutatingWebhookConfiguration inject.pods warn.namespaces >"$work/ca-bundle-mutating.yaml"
ca_bundle ValidatingWebhookConfiguration gate.pods >"$work/ca-bundle-validating.yaml"

# From here to the end of the loop nothing may interrupt: these files belong together.
trap '' HUP INT TERM
for file in $FILES; do
    mv -f -- "$work/$file" "$out/$file"
done
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
printf 'Issued for %s days into %s\n' "$days" "$out"

by_hand() {
    cat <<EOF
  kubectl patch mutatingwebhookconfiguration $APP --type=strategic --patch-file '$out/ca-bundle-mutating.yaml'
  kubectl patch validatingwebhookconfiguration $APP --type=strategic --patch-file '$out/ca-bundle-validating.yaml'
  kubectl create secret tls $APP-tls --namespace $namespace --cert '$out/tls.crt' --key '$out/tls.key' \\
      --dry-run=client -o yaml |
      kubectl apply --server-side --force-conflicts --field-manager $APP-issue -f -
EOF
}

# Puts the CA into the webhook configuration of this kind: mutating or validating.
trust() {
    "$kubectl" patch "$1webhookconfiguration" "$APP" --type=strategic --patch-file "$out/ca-bundle-$1.yaml"
}

# Trust first, then the certificate: in the other order calls fail in between.
# Server-side, because a client-side apply would copy the private key into an annotation.
hand_over() {
    trust mutating && trust validating &&
        "$kubectl" create secret tls "$APP-tls" --namespace "$namespace" --cert "$out/tls.crt" --key "$out/tls.key" \
            --dry-run=client -o yaml >"$work/secret.yaml" &&
        "$kubectl" apply --server-side --force-conflicts --field-manager "$APP-issue" -f "$work/secret.yaml"
}

if ! $use_kubectl; then
    printf 'Hand it to the cluster in this order, or let --kubectl do it:\n'
    by_hand
elif ! hand_over; then
    {
        printf 'The certificate is issued, but not handed to the cluster. When the cause is gone, do not issue again; run:\n'
        by_hand
    } >&2
    fail "kubectl failed: see above"
fi
