// Xen Orchestra's library against the simulated pool: connect, watch, flip, start, hear of it, restore, disconnect.
//
//     xo.mjs URL USER PASSWORD VM xml-rpc|json-rpc|auto

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createClient } from 'xen-api'

const [url, user, password, name, transport] = process.argv.slice(2)
const CLAIM = 'bootflip:claim'
const PATIENCE = 30e3

const xapi = createClient({
  url,
  auth: { user, password },
  allowUnauthorized: true,
  transport,
  debounce: 20,
  watchEvents: true,
})

// The event loop only warns when it cannot go on.
let leaving = false
console.warn = (...words) => {
  // The library's own loop goes on for a moment without the session that the library has ended; everything was seen.
  if (leaving) return
  console.error(...words)
  process.exitCode = 1
}

const inTime = (promise, what) => {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not in time`)), PATIENCE)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

// Resolves once the event loop has shown a record for which `reached` holds.
const seen = (ref, reached, what) =>
  inTime(
    new Promise(resolve => {
      const look = () => {
        const object = xapi.getObject(ref, undefined)
        if (object !== undefined && reached(object)) {
          xapi.objects.removeListener('update', look)
          xapi.objects.removeListener('add', look)
          resolve(object)
        }
      }
      xapi.objects.on('update', look)
      xapi.objects.on('add', look)
      look()
    }),
    what
  )

await inTime(xapi.connect(), 'connect')
await inTime(xapi.objectsFetched, 'first fetch')

const objects = Object.values(xapi.objects.all)
const guests = objects.filter(o => o.$type === 'VM' && !o.is_a_template && !o.is_control_domain)
const vm = guests.find(o => o.name_label === name)
const ref = vm.$ref
assert.equal(vm.power_state, 'Halted')
assert.equal(xapi.pool.$master.$type, 'host')
const types = new Set(objects.map(o => o.$type))
for (const type of ['host', 'network', 'pool', 'SR', 'VIF', 'VBD', 'VDI', 'VM_metrics']) {
  assert.ok(types.has(type), `no ${type}`)
}

const { HVM_boot_params: params, HVM_boot_policy: policy, domain_type: type } = vm
await xapi.call('VM.add_to_other_config', ref, CLAIM, '{}')
await xapi.setField('VM', ref, 'HVM_boot_params', { ...params, order: 'n' })
await (type === undefined
  ? xapi.setField('VM', ref, 'HVM_boot_policy', 'BIOS order')
  : xapi.setField('VM', ref, 'domain_type', 'hvm'))
await seen(ref, o => o.HVM_boot_policy === 'BIOS order' && o.HVM_boot_params.order === 'n', 'event of the flip')

await inTime(xapi.callAsync('VM.start', ref, false, false), 'task of the start')
const running = await seen(ref, o => o.power_state === 'Running', 'event of the start')
assert.equal(running.$resident_on.$type, 'host')
await assert.rejects(xapi.callAsync('VM.start', ref, false, false), { code: 'VM_BAD_POWER_STATE' })
await assert.rejects(xapi.call('VM.get_by_uuid', 'nobody'), { code: 'UUID_INVALID', params: ['VM', 'nobody'] })

await inTime(xapi.callAsync('VM.hard_shutdown', ref), 'task of the shutdown')
await seen(ref, o => o.power_state === 'Halted', 'event of the shutdown')
await (type === undefined
  ? xapi.setField('VM', ref, 'HVM_boot_policy', policy)
  : xapi.setField('VM', ref, 'domain_type', type))
await xapi.setField('VM', ref, 'HVM_boot_params', params)
await xapi.setFieldEntry('VM', ref, 'other_config', CLAIM, null)
const record = await xapi.getRecord('VM', ref)
assert.deepEqual(
  [record.HVM_boot_params, record.HVM_boot_policy, record.domain_type, record.other_config[CLAIM]],
  [params, policy, type, undefined]
)
leaving = true
await xapi.disconnect()
const { version } = JSON.parse(readFileSync(new URL('package.json', import.meta.resolve('xen-api'))))
if (process.exitCode === undefined) {
  console.log(`PASS xen-api (npm) ${version} ${transport}: ${guests.length} VMs, ${name} flipped, started, restored`)
}
// The event loop waits for its last call; everything is done.
setTimeout(() => process.exit(), 1e3).unref()
