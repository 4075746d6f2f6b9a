// A certified OpenID provider that mints JWT access tokens with the claims a test asks for.
//
//   node index.mjs PORT CERTIFICATE KEY
//
// POST /token   client credentials; form fields besides the usual: `alg` (RS256 or ES256),
//               `audience`, `ttl` (seconds), `claims` (JSON object, added to the token)
// POST /rotate  new signing keys; with ?keep=1 the old ones stay published
//
// It listens on 127.0.0.1 and its one client has a well-known secret: for tests only.

import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';

import Provider from 'oidc-provider';

const [port, certificate, key] = process.argv.slice(2);
const issuer = `https://127.0.0.1:${port}`;
const client = { client_id: 'tollgate-tests', client_secret: 'tollgate-tests-secret' };

function newKeys() {
  return [
    ['RS256', generateKeyPairSync('rsa', { modulusLength: 2048 })],
    ['ES256', generateKeyPairSync('ec', { namedCurve: 'P-256' })],
  ].map(([alg, pair]) => ({ ...pair.privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: randomUUID() }));
}

function newProvider(keys) {
  const provider = new Provider(issuer, {
    jwks: { keys },
    clients: [{
      ...client,
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
      token_endpoint_auth_method: 'client_secret_post',
    }],
    ttl: { ClientCredentials: (ctx) => Number(ctx.oidc.body.ttl ?? 600) },
    extraTokenClaims: (ctx) => JSON.parse(ctx.oidc.body.claims ?? '{}'),
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:tollgate',
        getResourceServerInfo: (ctx) => ({
          scope: '',
          audience: ctx.oidc.body.audience ?? 'tollgate',
          accessTokenFormat: 'jwt',
          jwt: { sign: { alg: ctx.oidc.body.alg ?? 'RS256' } },
        }),
      },
    },
  });
  provider.on('server_error', (ctx, error) => console.error(error));
  return provider.callback();
}

let keys = newKeys();
let serve = newProvider(keys);

createServer({ cert: readFileSync(certificate), key: readFileSync(key) }, (request, response) => {
  const url = new URL(request.url, issuer);
  if (request.method === 'POST' && url.pathname === '/rotate') {
    const fresh = newKeys();
    // The new ones first: the provider signs with the first that fits.
    keys = url.searchParams.get('keep') ? [...fresh, ...keys] : fresh;
    serve = newProvider(keys);
    response.writeHead(204).end();
    return;
  }
  serve(request, response);
}).listen(Number(port), '127.0.0.1', () => console.log(`ready ${issuer}`));
